"""The binding of wide.cu, the same for compute capability 9.0 alone: weights as it reads them, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.common import divide
from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import operand, order
from restort.kernels.launch import Launch

Tensor = Any

PIXELS = 128  # of a block
KERNEL = CudaKernel("norm_expand_wide", Path(__file__).with_name("wide.cu"), "bulk.cuh")
CAPABILITY = 90  # wgmma is in no other
SHARED_BYTES = 227 * 1024
CHANNELS = (384,)  # a thread keeps a quarter of them in registers


def pack(w: Tensor, columns: int = 0) -> Tensor:
    """w (M, C) as the kernel reads it: for each `columns` rows of w one piece of memory, channels outermost.

    `columns`: COLUMNS of the launch, or 0 for that of `tiles`.
    """
    rows, channels = w.shape
    step = columns or tiles()["COLUMNS"]
    matrix = w[order(rows // 8)][:, order(channels // 8)].T
    pieces = [operand(matrix[:, first : first + step]) for first in range(0, rows, step)]
    return torch.cat(pieces).view(w.dtype).view(rows, channels)


def tiles() -> dict[str, int]:
    """COLUMNS at a time; DEPTH times so many are on chip, in PARTS parts each (benchmarks/tune_kernels.py).

    TURNS 1: groups of four warps multiply after one another, not both at once. WARPS and BLOCKS: as the kernel needs.
    """
    return {"WARPS": 12, "COLUMNS": 64, "PARTS": 2, "DEPTH": 4, "TURNS": 1, "BLOCKS": 1}


def shared_bytes(channels: int, rows: int, columns: int, depth: int) -> int:
    """Shared memory of a block; wide.cu asserts the same number."""
    return 2 * channels * columns * depth + 8 * rows + 256


def fits(channels: int, rows: int, capability: int) -> bool:
    """Whether that GPU can run it, with 16-bit numbers. It is faster than Triton's kernel then, by few pixels, too."""
    cut = tiles()
    return (
        capability == CAPABILITY
        and channels in CHANNELS
        and rows % cut["COLUMNS"] == 0
        and shared_bytes(channels, rows, cut["COLUMNS"], cut["DEPTH"]) <= SHARED_BYTES
    )


def launch(
    x: Tensor,
    w: Tensor,
    affine: Tensor,
    y: Tensor,
    *,
    label: str = "",
    processors: int = 132,
    **variant: int,
) -> Launch:
    """y (..., M) from x (..., C) as kernel.launch, with w from `pack`. `variant` overrides `tiles`."""
    rows, channels = w.shape
    pixels = x.numel() // channels
    cut = {**tiles(), **variant}
    constants = {
        "C": channels,
        "M": rows,
        "BF16": int("bfloat16" in str(x.dtype)),
        "WGMMA": 1,
        "OVERLAP": 0,
        **cut,
        "SHARED": shared_bytes(channels, rows, cut["COLUMNS"], cut["DEPTH"]),
    }
    items = divide(pixels, PIXELS) * (rows // cut["COLUMNS"])
    return Launch(
        KERNEL,
        {"x": x, "w": w, "affine": affine, "y": y},
        {"pixels": pixels},
        constants,
        (min(items, processors),),
        warps=cut["WARPS"],
        flops=2 * pixels * channels * rows,
        moved=x.dtype.itemsize * (pixels * (channels + rows) + channels * rows),
        label=label,
    )
