"""The first 3x3 convolution by a kernel in CUDA C++ (first.cu): its weights, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.common import divide
from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import bits, order, units
from restort.kernels.launch import Launch

Tensor = Any

KERNEL = CudaKernel("conv3x3_first", Path(__file__).with_name("first.cu"))
WIDE = 32  # pixels of a row of the tile
STEPS_AND_TILES = 12  # of weights that a thread has registers for, 4 each: 3 channels to 48


def fits(channels: int, rows: int, dtype: Any, capability: int) -> bool:
    """Whether that GPU can run it."""
    return (
        capability >= 80
        and dtype.itemsize == 2
        and rows % 8 == 0
        and divide(9 * channels, 16) * rows // 8 <= STEPS_AND_TILES
    )


def pack(w: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Weights (rows, K) float32 as in reference.first, int32, in the kernel's order."""
    rows, k = w.shape[0], 9 * channels
    matrix = torch.cat([w[:, :k], w.new_zeros(rows, -k % 16)], 1).T[:, order(rows // 8)]
    rounded = matrix.to(dtype)
    rest = (matrix - rounded.float()).to(dtype)
    return bits(torch.stack([units(rounded), units(rest)], 3).reshape(-1))


def launch(
    image: Tensor, blob: Tensor, y: Tensor, *, label: str = "", warps: int = 8, blocks: int = 2
) -> Launch:
    """y (N, H, W, rows) from image (N, C, H, W) float32 and `blob` from `pack`.

    warps, blocks   in a block of 32 x 2 warps pixels, and a multiprocessor.
    """
    n, channels, h, wide = image.shape
    rows = y.shape[-1]
    constants = {
        "CIN": channels,
        "C": rows,
        "BF16": int("bfloat16" in str(y.dtype)),
        "OVERLAP": 0,
        "WARPS": warps,
        "BLOCKS": blocks,
        "SHARED": channels * (2 * warps + 2) * 40 * 4,
    }
    return Launch(
        KERNEL,
        {"image": image, "blob": blob, "y": y},
        {"h": h, "w": wide},
        constants,
        (divide(wide, WIDE), divide(h, 2 * warps), n),
        warps=warps,
        flops=2 * n * h * wide * 9 * channels * rows,
        moved=image.numel() * 4 + y.numel() * y.dtype.itemsize,
        label=label,
    )
