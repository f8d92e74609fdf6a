"""The launch of sm80.cu (compute capability 8.0 and higher), the gating without the projection: its tiling."""

from __future__ import annotations

from typing import Any

from restort.kernels import depthwise
from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch

Tensor = Any

SPEC = KernelSpec("gelu_gate_sm80", __file__, ("gelu.cuh", depthwise.HEADER))
ENOUGH = 2.5  # blocks of 8 rows per SM: with more, tiles are made lower


def tiling(pixels: int, hidden: int, capability: int = 90, num_sms: int = 132) -> dict[str, int]:
    """Return the macros of a tiling: CHANNELS of a block, rows of pixels (TALL), WARPS, BLOCKS per SM.

    Of many tiles those of 6 rows, five blocks at once, were the fastest; of few, those of 8 rows, which have the
    smaller halo. By 32 channels only these have been run.
    """
    channels = 64 if hidden % 64 == 0 else 32
    many = pixels * (hidden // channels) >= ENOUGH * num_sms * depthwise.TILE_W * 8
    tall = 6 if many and channels == 64 else 8
    warps = channels // 16  # one strip
    held = depthwise.blocks_per_sm(depthwise.tile_bytes(2, channels, tall), shared_memory_limit(capability))
    return {
        "CHANNELS": channels,
        "TALL": tall,
        "WARPS": warps,
        "BLOCKS": min(held, (20 if tall == 6 else 16) // warps),  # 96 or 128 registers a thread
    }


def fits(hidden: int) -> bool:
    """Return whether the kernel takes so many hidden channels; every GPU has the memory."""
    return hidden % 32 == 0


def launch(
    expanded: Tensor,
    dw16: Tensor,
    y: Tensor,
    *,
    label: str = "",
    capability: int = 90,
    num_sms: int = 132,
    **overrides: int,
) -> Launch:
    """Return a launch: y (N, H, W, F) = gelu(gate) * value of expanded (N, H, W, 2 F) and dw16 (10, 2 F), all 16-bit.

    `overrides` replaces macros of `tiling`.
    """
    n, h, w, hidden = y.shape
    chosen = {**tiling(n * h * w, hidden, capability, num_sms), **overrides}
    return SPEC.launch(
        {"expanded": expanded, "dw": dw16, "y": y},
        {"h": h, "w": w},
        {"STRIDE": 2 * hidden, "PARTS": 2, **chosen},
        (depthwise.count_tiles(h, w, chosen["TALL"]) * (hidden // chosen["CHANNELS"]), n),
        dtype=y.dtype,
        shared=depthwise.tile_bytes(2, chosen["CHANNELS"], chosen["TALL"]),
        flops=n * h * w * hidden * 2 * 18,
        moved=2 * n * h * w * 3 * hidden,
        label=label,
    )
