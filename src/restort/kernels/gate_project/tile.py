"""The gating alone by a kernel in CUDA C++ (tile.cu): how it is cut up, and where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restort.kernels import depthwise
from restort.kernels.cuda import CudaKernel
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("gate_tile", Path(__file__).with_name("tile.cu"), depthwise.HEADER)
ENOUGH = 2.5  # blocks of 8 rows a multiprocessor: with more, they are cut lower


def tiles(pixels: int, hidden: int, capability: int = 90, processors: int = 132) -> dict[str, int]:
    """CHANNELS of a block, rows of pixels (TALL), WARPS, BLOCKS a multiprocessor, REVERSE as tile.cu says.

    Of many tiles those of 6 rows, five blocks at once, were the fastest; of few, those of 8 rows, which have the
    smaller halo. By 32 channels only these have been run.
    """
    channels = 64 if hidden % 64 == 0 else 32
    many = pixels * (hidden // channels) >= ENOUGH * processors * depthwise.WIDE * 8
    tall = 6 if many and channels == 64 else 8
    warps = channels // 16  # one strip
    held = depthwise.blocks(depthwise.tile_bytes(2, channels, tall), SHARED_KIB.get(capability, 99))
    return {
        "CHANNELS": channels,
        "TALL": tall,
        "WARPS": warps,
        "BLOCKS": min(held, (20 if tall == 6 else 16) // warps),  # 96 or 128 registers a thread
        "REVERSE": 1,
    }


def fits(hidden: int) -> bool:
    """Whether the kernel takes so many hidden channels; any GPU has the memory."""
    return hidden % 32 == 0


def launch(
    expanded: Tensor,
    dw16: Tensor,
    y: Tensor,
    *,
    label: str = "",
    capability: int = 90,
    processors: int = 132,
    **variant: int,
) -> Launch:
    """y (N, H, W, F) = gelu(gate) * value, from expanded (N, H, W, 2 F) and dw16 (10, 2 F), all of one 16-bit type.

    `variant` overrides `tiles`.
    """
    n, h, w, hidden = y.shape
    cut = {**tiles(n * h * w, hidden, capability, processors), **variant}
    brain = "bfloat16" in str(y.dtype)
    constants = {
        "STRIDE": 2 * hidden,
        "PARTS": 2,
        "GELU": 1 if brain else 2,
        "BF16": int(brain),
        **cut,
        "SHARED": depthwise.tile_bytes(2, cut["CHANNELS"], cut["TALL"]),
    }
    return Launch(
        KERNEL,
        {"expanded": expanded, "dw": dw16, "y": y},
        {"h": h, "w": w},
        constants,
        (depthwise.count(h, w, cut["TALL"]) * (hidden // cut["CHANNELS"]), n),
        warps=cut["WARPS"],
        flops=n * h * w * hidden * 2 * 18,
        moved=2 * n * h * w * 3 * hidden,
        label=label,
    )
