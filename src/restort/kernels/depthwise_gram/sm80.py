"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling."""

from __future__ import annotations

from typing import Any

from restort.kernels import depthwise
from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import even_workers

Tensor = Any

SPEC = KernelSpec("depthwise_gram_sm80", __file__, (depthwise.HEADER,))
CH = 48  # channels of a head; other multiples of 16 work, too, and have not been tried on a GPU
WARPS = 12  # per SM: each thread has a strip of 4 rows, which takes 114 registers
ENOUGH = 0.75  # blocks of 8 rows per SM: with fewer, tiles are made lower


def tiling(
    n: int, h: int, w: int, channels: int, heads: int, capability: int = 90, num_sms: int = 132
) -> dict[str, int]:
    """Return the macros of a tiling: rows of pixels (TALL), WARPS (ch / 16 for a strip of 4 rows), BLOCKS per SM.

    High tiles have less halo and half as many partial sums. Low ones keep more SMs busy, and several fit where there is
    little shared memory: while one convolves others wait for their pixels.
    """
    ch, limit = channels // heads, shared_memory_limit(capability)
    many = n * heads * depthwise.count_tiles(h, w, 8) >= ENOUGH * num_sms
    tall = 8 if many and depthwise.blocks_per_sm(shared_bytes(ch, 8), limit) > 1 else 4
    warps = ch // 16 * (tall // 4)
    held = depthwise.blocks_per_sm(shared_bytes(ch, tall), limit)
    return {"TALL": tall, "WARPS": warps, "BLOCKS": min(held, max(1, WARPS // warps))}


def shared_bytes(ch: int, tall: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    return depthwise.tile_bytes(3, ch, tall) + depthwise.TILE_W * tall * (4 * ch + 16)


def splits(
    n: int,
    h: int,
    w: int,
    channels: int,
    heads: int,
    capability: int = 90,
    num_sms: int = 132,
    **overrides: int,
) -> int:
    """Return how many blocks share a head's pixels, the number of partial sums: as many as the GPU runs at once."""
    chosen = {**tiling(n, h, w, channels, heads, capability, num_sms), **overrides}
    tiles = depthwise.count_tiles(h, w, chosen["TALL"])
    together = max(1, chosen["BLOCKS"] * num_sms // (n * heads))
    return even_workers(tiles, together)


def fits(channels: int, heads: int) -> bool:
    """Return whether the kernel takes such heads; every GPU has the memory."""
    return channels % heads == 0 and channels // heads == CH


def launch(
    qkv: Tensor,
    dw16: Tensor,
    v: Tensor,
    sums: Tensor,
    *,
    label: str = "",
    capability: int = 90,
    num_sms: int = 132,
    **overrides: int,
) -> Launch:
    """Return a launch as triton.launch does, of 16-bit types, with taps and bias (10, 3 C) in that type.

    sums has as many splits as `splits` says. `overrides` replaces macros of `tiling`.
    """
    n, h, w, channels = v.shape
    heads = sums.shape[2]
    ch = channels // heads
    chosen = {**tiling(n, h, w, channels, heads, capability, num_sms), **overrides}
    tiles = depthwise.count_tiles(h, w, chosen["TALL"])
    if sums.shape[0] > tiles:
        raise ValueError(f"{sums.shape[0]} partial sums of {tiles} tiles: each is of one at least")
    return SPEC.launch(
        {"qkv": qkv, "dw": dw16, "v": v, "sums": sums},
        {"h": h, "w": w},
        {"STRIDE": 3 * channels, "PARTS": 3, "CHANNELS": ch, **chosen},
        (heads * sums.shape[0], n),
        dtype=v.dtype,
        shared=shared_bytes(ch, chosen["TALL"]),
        flops=n * h * w * channels * (2 * 27 + 2 * ch),
        moved=2 * n * h * w * 4 * channels + 4 * sums.numel(),
        label=label,
    )
