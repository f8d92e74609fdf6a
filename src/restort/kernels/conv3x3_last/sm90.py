"""The launch of sm90.cu (compute capability 9.0): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import wgmma_operand
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import cdiv, round_up

Tensor = Any

SPEC = KernelSpec("conv3x3_last_sm90", __file__, ("wgmma.cuh",), only_sm90=True, overlaps=True)
TILE_W = 16
COLUMNS = 32  # of the product: nine for each result


def tiling(channels: int) -> dict[str, int]:
    """Return the macros of a tiling: 16 x TALL pixels by WARPS warps, BLOCKS per SM."""
    return {"WARPS": 8, "TALL": 16, "BLOCKS": 3 if channels <= 96 else 1}


def fits(channels: int, rows: int, dtype: Any, capability: int) -> bool:
    """Return whether the kernel takes such a convolution and that GPU can run it."""
    return (
        dtype.itemsize == 2
        and channels % 16 == 0
        and 9 * rows <= COLUMNS
        and SPEC.fits(shared_bytes(channels, rows, tiling(channels)), capability)
    )


def pays(
    channels: int, rows: int, n: int, h: int, w: int, dtype: Any, capability: int, num_sms: int = 132
) -> bool:
    """Return whether it fits and should be faster than Triton's kernel: where half of the SMs have a block."""
    if not fits(channels, rows, dtype, capability):
        return False
    return 2 * n * cdiv(h, tiling(channels)["TALL"]) * cdiv(w, TILE_W) >= num_sms


def pack(w: Tensor, channels: int) -> Tensor:
    """Return the weights (rows, 3, K) of conv3x3.reference, int32: an operand with a column for a tap and result."""
    rows = w.shape[0]
    taps = w[:, :, : 3 * channels].reshape(rows, 9, channels).permute(1, 2, 0)  # (9, C, rows)
    matrix = taps.permute(1, 0, 2).reshape(channels, 9 * rows)
    return wgmma_operand(torch.cat([matrix, matrix.new_zeros(channels, COLUMNS - 9 * rows)], 1))


def shared_bytes(channels: int, rows: int, macros: dict[str, int]) -> int:
    """Return the shared memory of a block; sm90.cu asserts the same number."""
    units, pixels, groups = channels // 8, 18 * (macros["TALL"] + 2), macros["WARPS"] // 4
    unit, read = pixels * 16 + 16, cdiv(pixels, 64 * groups) * groups * 1024
    weights = round_up(units * unit, 128) + channels * COLUMNS * 2
    beyond = round_up((units - 1) * unit + read, 128)
    return max(weights, beyond, 9 * rows * ((pixels + 27) // 32 * 32 + 4) * 4)


def launch(
    x: Tensor,
    blob: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    extra: Tensor | None = None,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch: y (N, rows, H, W) float32 from x (N, H, W, C) and `blob` from `pack`.

    `extra`: the image to add, if any.     `overrides` replaces macros of `tiling`.
    """
    n, h, w, channels = x.shape
    rows = bias.shape[0]
    chosen = {**tiling(channels), **overrides}
    return SPEC.launch(
        {"x": x, "blob": blob, "bias": bias, "extra": bias if extra is None else extra, "y": y},
        {"h": h, "w": w},
        {"C": channels, "ROWS": rows, "EXTRA": int(extra is not None), **chosen},
        (cdiv(w, TILE_W), cdiv(h, chosen["TALL"]), n),
        dtype=x.dtype,
        shared=shared_bytes(channels, rows, chosen),
        flops=2 * n * h * w * 9 * channels * rows,
        moved=sum(t.numel() * t.dtype.itemsize for t in (x, blob, y) + (() if extra is None else (extra,))),
        label=label,
    )
