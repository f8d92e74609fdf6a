"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import as_int32, mma_fragments
from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch, check_windows
from restort.utils.integers import cdiv, round_up

Tensor = Any

SPEC = KernelSpec("upsample_tail_sm80", __file__, overlaps=True)


def supports(scale: int, dtype: Any) -> bool:
    """Return whether the kernel can make images of this scale."""
    return scale in (2, 4) and dtype.itemsize == 2


def pack(weights: tuple[Tensor, Tensor], channels: int, colors: int, scale: int, factor: float) -> Tensor:
    """Return the nine taps, the factor and the bias, int32, in the kernel's order; arguments as in the reference."""
    w, b = weights
    rows, count = round_up(channels, 32), round_up(colors * scale**2, 16)
    if scale == 4:  # of two tiles of 8, a thread has four in a row
        columns = [
            16 * t + 4 * (c // 2) + 2 * h + c % 2
            for t in range(count // 16)
            for h in range(2)
            for c in range(8)
        ]
    else:
        columns = list(range(count))
    padded = torch.cat([w, w.new_zeros(9, w.shape[1], max(0, count - w.shape[2]))], 2)[:, :rows, columns]
    taps = []
    for tap in padded:
        fragments = mma_fragments(tap)  # (steps, tiles, 32, 2, 2)
        steps, tiles = fragments.shape[:2]
        pairs = fragments.reshape(steps, tiles // 2, 2, 32, 4).transpose(2, 3)
        taps.append(as_int32(pairs.reshape(-1)))
    bias = torch.cat([b, b.new_zeros(max(0, count - len(b)))])[columns]
    return torch.cat([*taps, as_int32(torch.tensor([factor, 0, 0, 0])), as_int32(bias.float())])


def tiling(channels: int, capability: int) -> dict[str, int]:
    """Return the macros of a tiling: WARPS (two rows of 16 pixels each), STAGES, BLOCKS per SM.

    STAGES: taps in the ring, or 0 to keep them all.
    """
    if shared_memory_limit(capability) < 200 << 10:
        return {"WARPS": 4, "STAGES": 2, "BLOCKS": 1}
    return {"WARPS": 8, "STAGES": 0 if channels <= 64 else 3, "BLOCKS": 2 if channels <= 64 else 1}


def fits(channels: int, colors: int, scale: int, capability: int) -> bool:
    """Return whether that GPU has the shared memory for a block."""
    chosen = tiling(channels, capability)
    return SPEC.fits(shared_bytes(channels, colors, scale, chosen["WARPS"], chosen["STAGES"]), capability)


def shared_bytes(channels: int, colors: int, scale: int, warps: int, stages: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    steps = cdiv(channels, 32) * 2
    tile = 18 * (2 * warps + 2) * (steps * 32 + 16)
    return round_up(tile, 128) + (stages or 9) * steps * cdiv(colors * scale**2, 16) * 512


def launch(
    x: Tensor,
    blob: Tensor,
    out: Tensor,
    scale: int,
    channels: int,
    capability: int = 90,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; arrays as in reference.upsample_tail, `blob` from `pack`.

    `overrides` replaces macros of `tiling`.
    """
    n, colors, h, w = out.shape
    h, w = h // scale, w // scale
    check_windows(h, w)
    chosen = {**tiling(channels, capability), **overrides}
    results = colors * scale * scale
    return SPEC.launch(
        {"x": x, "blob": blob, "out": out},
        {"h": h, "w": w},
        {"C": channels, "COLORS": colors, "SCALE": scale, **chosen},
        (w // 16, h // (2 * chosen["WARPS"]), n),
        dtype=x.dtype,
        shared=shared_bytes(channels, colors, scale, chosen["WARPS"], chosen["STAGES"]),
        flops=2 * n * h * w * 9 * channels * results,
        moved=n * h * w * (channels * x.element_size() + 4 * results),
        label=label,
    )
