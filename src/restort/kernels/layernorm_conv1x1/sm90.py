"""The launch of sm90.cu (compute capability 9.0), for many channels: its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import channel_order, wgmma_operand
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import cdiv

Tensor = Any

SPEC = KernelSpec(
    "layernorm_conv1x1_sm90", __file__, ("wgmma.cuh", "mbarrier.cuh"), only_sm90=True, overlaps=True
)
PIXELS = 128  # of a block
CHANNELS = (384,)  # a thread keeps a quarter of them in registers


def pack(w: Tensor, columns: int = 0) -> Tensor:
    """Return w (M, C) as the kernel reads it: for each `columns` rows of w one piece of memory, channels outermost.

    `columns`: COLUMNS of the launch, or 0 for that of `tiling`.
    """
    rows, channels = w.shape
    step = columns or tiling()["COLUMNS"]
    matrix = w[channel_order(rows // 8)][:, channel_order(channels // 8)].T
    pieces = [wgmma_operand(matrix[:, first : first + step]) for first in range(0, rows, step)]
    return torch.cat(pieces).view(w.dtype).view(rows, channels)


def tiling() -> dict[str, int]:
    """Return the macros of a tiling: COLUMNS at a time, of which DEPTH are on chip at once, in PARTS parts each.

    WARPS and BLOCKS are what the kernel's division of work needs.
    """
    return {"WARPS": 12, "COLUMNS": 64, "PARTS": 2, "DEPTH": 4, "BLOCKS": 1}


def shared_bytes(channels: int, rows: int, columns: int, depth: int) -> int:
    """Return the shared memory of a block; sm90.cu asserts the same number."""
    return 2 * channels * columns * depth + 8 * rows + 256


def fits(channels: int, rows: int, capability: int) -> bool:
    """Return whether that GPU can run it, with 16-bit numbers. It is faster than Triton's kernel at all sizes."""
    chosen = tiling()
    return (
        channels in CHANNELS
        and rows % chosen["COLUMNS"] == 0
        and SPEC.fits(shared_bytes(channels, rows, chosen["COLUMNS"], chosen["DEPTH"]), capability)
    )


def launch(
    x: Tensor,
    w: Tensor,
    affine: Tensor,
    y: Tensor,
    *,
    label: str = "",
    num_sms: int = 132,
    **overrides: int,
) -> Launch:
    """Return a launch as triton.launch does, with w from `pack`. `overrides` replaces macros of `tiling`."""
    rows, channels = w.shape
    pixels = x.numel() // channels
    chosen = {**tiling(), **overrides}
    items = cdiv(pixels, PIXELS) * (rows // chosen["COLUMNS"])
    return SPEC.launch(
        {"x": x, "w": w, "affine": affine, "y": y},
        {"pixels": pixels},
        {"C": channels, "M": rows, **chosen},
        (min(items, num_sms),),
        dtype=x.dtype,
        shared=shared_bytes(channels, rows, chosen["COLUMNS"], chosen["DEPTH"]),
        flops=2 * pixels * channels * rows,
        moved=x.dtype.itemsize * (pixels * (channels + rows) + channels * rows),
        label=label,
    )
