"""The same by a kernel in CUDA C++ (tile.cu): how it is cut up, and where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restort.kernels import depthwise
from restort.kernels.cuda import CudaKernel
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("gram_tile", Path(__file__).with_name("tile.cu"), depthwise.HEADER)
CH = 48  # channels of a head; others that are multiples of 16 work, too, and have not been tried on a GPU
WARPS = 12  # a multiprocessor, each thread with the strip of 4 rows that its 114 registers are for
ENOUGH = 0.75  # blocks of 8 rows a multiprocessor: with fewer, tiles are cut lower


def tiles(
    n: int, h: int, w: int, channels: int, heads: int, capability: int = 90, processors: int = 132
) -> dict[str, int]:
    """Rows of pixels (TALL), WARPS (ch / 16 a strip of 4 rows), BLOCKS a multiprocessor, REVERSE as tile.cu says.

    High tiles have less halo and half as many partial sums; low ones keep more multiprocessors busy, and several fit
    where there is little shared memory: while one convolves others wait for their pixels.
    """
    ch, limit = channels // heads, SHARED_KIB.get(capability, 99)
    many = n * heads * depthwise.count(h, w, 8) >= ENOUGH * processors
    tall = 8 if many and depthwise.blocks(shared_bytes(ch, 8), limit) > 1 else 4
    warps = ch // 16 * (tall // 4)
    held = depthwise.blocks(shared_bytes(ch, tall), limit)
    return {"TALL": tall, "WARPS": warps, "BLOCKS": min(held, max(1, WARPS // warps)), "REVERSE": 1}


def shared_bytes(ch: int, tall: int) -> int:
    """Shared memory of a block; tile.cu asserts the same number."""
    return depthwise.tile_bytes(3, ch, tall) + depthwise.WIDE * tall * (4 * ch + 16)


def splits(
    n: int,
    h: int,
    w: int,
    channels: int,
    heads: int,
    capability: int = 90,
    processors: int = 132,
    **variant: int,
) -> int:
    """How many blocks share a head's pixels, which is how many partial sums there are: what the GPU runs at once."""
    cut = {**tiles(n, h, w, channels, heads, capability, processors), **variant}
    count = depthwise.count(h, w, cut["TALL"])
    together = max(1, cut["BLOCKS"] * processors // (n * heads))
    rounds = -(-count // together)
    return -(-count // rounds)  # no more blocks than the longest of them needs


def fits(channels: int, heads: int) -> bool:
    """Whether the kernel takes such heads; any GPU has the memory."""
    return channels % heads == 0 and channels // heads == CH


def launch(
    qkv: Tensor,
    dw16: Tensor,
    v: Tensor,
    sums: Tensor,
    *,
    label: str = "",
    capability: int = 90,
    processors: int = 132,
    **variant: int,
) -> Launch:
    """As depthwise_gram.kernel.launch, of 16-bit types, with taps and bias (10, 3 C) in that type and `splits` of here.

    `variant` overrides `tiles`.
    """
    n, h, w, channels = v.shape
    heads = sums.shape[2]
    ch = channels // heads
    cut = {**tiles(n, h, w, channels, heads, capability, processors), **variant}
    count = depthwise.count(h, w, cut["TALL"])
    if sums.shape[0] > count:
        raise ValueError(f"{sums.shape[0]} partial sums of {count} tiles: each is of one at least")
    constants = {
        "STRIDE": 3 * channels,
        "PARTS": 3,
        "CHANNELS": ch,
        "BF16": int("bfloat16" in str(v.dtype)),
        **cut,
        "SHARED": shared_bytes(ch, cut["TALL"]),
    }
    return Launch(
        KERNEL,
        {"qkv": qkv, "dw": dw16, "v": v, "sums": sums},
        {"h": h, "w": w},
        constants,
        (heads * sums.shape[0], n),
        warps=cut["WARPS"],
        flops=n * h * w * channels * (2 * 27 + 2 * ch),
        moved=2 * n * h * w * 4 * channels + 4 * sums.numel(),
        label=label,
    )
