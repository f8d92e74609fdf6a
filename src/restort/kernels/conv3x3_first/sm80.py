"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import as_int32, channel_order, mma_fragments
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import cdiv

Tensor = Any

SPEC = KernelSpec("conv3x3_first_sm80", __file__, overlaps=True)
TILE_W = 32
STEPS_AND_TILES = 12  # of weights that a thread has registers for, 4 each: 3 channels to 48


def tiling() -> dict[str, int]:
    """Return the macros of a tiling: WARPS in a block of 32 x 2 WARPS pixels, BLOCKS per SM."""
    return {"WARPS": 8, "BLOCKS": 2}


def fits(channels: int, rows: int, dtype: Any, capability: int) -> bool:
    """Return whether that GPU can run it."""
    return (
        SPEC.fits(shared_bytes(channels, tiling()["WARPS"]), capability)
        and dtype.itemsize == 2
        and rows % 8 == 0
        and cdiv(9 * channels, 16) * rows // 8 <= STEPS_AND_TILES
    )


def pack(w: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return the weights (rows, K) float32 of reference.conv3x3_first, int32, in the kernel's order."""
    rows, k = w.shape[0], 9 * channels
    matrix = torch.cat([w[:, :k], w.new_zeros(rows, -k % 16)], 1).T[:, channel_order(rows // 8)]
    rounded = matrix.to(dtype)
    rest = (matrix - rounded.float()).to(dtype)
    return as_int32(torch.stack([mma_fragments(rounded), mma_fragments(rest)], 3).reshape(-1))


def shared_bytes(channels: int, warps: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    return channels * (2 * warps + 2) * 40 * 4


def launch(image: Tensor, blob: Tensor, y: Tensor, *, label: str = "", **overrides: int) -> Launch:
    """Return a launch: y (N, H, W, rows) from image (N, C, H, W) float32 and `blob` from `pack`.

    `overrides` replaces macros of `tiling`.
    """
    n, channels, h, width = image.shape
    rows = y.shape[-1]
    chosen = {**tiling(), **overrides}
    return SPEC.launch(
        {"image": image, "blob": blob, "y": y},
        {"h": h, "w": width},
        {"CIN": channels, "C": rows, **chosen},
        (cdiv(width, TILE_W), cdiv(h, 2 * chosen["WARPS"]), n),
        dtype=y.dtype,
        shared=shared_bytes(channels, chosen["WARPS"]),
        flops=2 * n * h * width * 9 * channels * rows,
        moved=image.numel() * 4 + y.numel() * y.dtype.itemsize,
        label=label,
    )
