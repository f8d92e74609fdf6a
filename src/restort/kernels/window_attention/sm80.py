"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import as_int32, channel_order, mma_fragments
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch, check_windows
from restort.utils.integers import cdiv, round_up

Tensor = Any

SPEC = KernelSpec("window_attention_sm80", __file__, overlaps=True)
WINDOWS = (4, 8, 16)


def pack(weights: tuple[Tensor, Tensor], channels: int, part: int) -> Tensor:
    """Return the projection, int32: for every 32 columns all steps of 16 rows, perhaps one of 8, then the bias.

    Arguments as in reference.window_attention; `part`: DS.
    """
    w, b = weights
    tiles = cdiv(channels, 8)
    matrix = w[:, :part, channel_order(tiles)].reshape(3 * part, -1)
    matrix = torch.cat([matrix, matrix.new_zeros(3 * part, -tiles % 4 * 8)], 1)
    rows = 3 * part // 16 * 16
    pieces = []
    for first in range(0, matrix.shape[1], 32):
        columns = matrix[:, first : first + 32]
        steps = (
            mma_fragments(columns[:rows]).permute(0, 2, 1, 3, 4).reshape(-1, 32, 2, 8)
        )  # step, lane, tile, part, 2
        pieces.append(as_int32(steps.transpose(1, 2).reshape(-1)))
        if rows < 3 * part:
            padded = torch.cat([columns[rows:], columns.new_zeros(8, 32)])
            pieces.append(
                as_int32(mma_fragments(padded)[0, :, :, 0].transpose(0, 1).reshape(-1))
            )  # lane, tile, 2
    return torch.cat([*pieces, as_int32(b[channel_order(tiles)].float())])


def tiling(channels: int, rolled: bool) -> dict[str, int]:
    """Return the macros of a tiling: WARPS (rows of 16 pixels), BLOCKS per SM, EARLY.

    EARLY 1: x is read before the last attention.
    """
    if channels <= 64:
        return {"WARPS": 8, "BLOCKS": 2, "EARLY": 1}
    return {"WARPS": 8, "BLOCKS": 1 if rolled else 2, "EARLY": 0}


def fits(channels: int, part: int, capability: int) -> bool:
    """Return whether that GPU has the shared memory for a block."""
    warps = tiling(channels, True)["WARPS"]
    return SPEC.fits(shared_bytes(channels, part, True, warps), capability)


def shared_bytes(channels: int, part: int, rolled: bool, warps: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    pitch = part * 2 if part // 8 % 2 else part * 2 + 16
    areas = [(16 + 2 * margin) * (warps + 2 * margin) for margin in ((2, 4) if rolled else (0, 0))]
    projection = cdiv(channels, 32) * (3 * part // 16 * 1024 + (512 if 3 * part % 16 else 0))
    return round_up(2 * max(areas) * pitch, 128) + max(2 * 256 * pitch, projection)


def launch(
    q: Tensor,
    v: Tensor,
    x: Tensor,
    blob: Tensor,
    out: Tensor,
    channels: int,
    rolled: bool,
    extra: Tensor | None = None,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; arrays as in reference.window_attention, `blob` from `pack`. `out` may be `x`.

    `overrides` replaces macros of `tiling`.
    """
    n, h, w, part = v.shape
    part //= 3
    check_windows(h, w)
    chosen = {**tiling(channels, rolled), **overrides}
    pixels = n * h * w
    return SPEC.launch(
        {"q": q, "v": v, "x": x, "extra": x if extra is None else extra, "blob": blob, "out": out},
        {"h": h, "w": w},
        {"C": channels, "DS": part, "ROLLED": int(rolled), "ADD": int(extra is not None), **chosen},
        (w // 16, h // chosen["WARPS"], n),
        dtype=x.dtype,
        shared=shared_bytes(channels, part, rolled, chosen["WARPS"]),
        flops=2 * pixels * channels * (channels + 2 * sum(s * s for s in WINDOWS) // 3),
        moved=pixels * channels * x.element_size() * (4 + (extra is not None)),
        label=label,
    )
