"""The same by a kernel in CUDA C++ (tile.cu): its weights, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import bits, order, units
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("attention_tile", Path(__file__).with_name("tile.cu"))
WINDOWS = (4, 8, 16)


def pack(weights: tuple[Tensor, Tensor], channels: int, part: int) -> Tensor:
    """The projection, int32: for every 32 columns all steps of 16 rows, perhaps one of 8, then the bias.

    Arguments as in reference.window_attention; `part`: DS.
    """
    w, b = weights
    tiles = -(-channels // 8)
    matrix = w[:, :part, order(tiles)].reshape(3 * part, -1)
    matrix = torch.cat([matrix, matrix.new_zeros(3 * part, -tiles % 4 * 8)], 1)
    whole = 3 * part // 16 * 16
    found = []
    for first in range(0, matrix.shape[1], 32):
        columns = matrix[:, first : first + 32]
        steps = (
            units(columns[:whole]).permute(0, 2, 1, 3, 4).reshape(-1, 32, 2, 8)
        )  # step, lane, tile, part, 2
        found.append(bits(steps.transpose(1, 2).reshape(-1)))
        if whole < 3 * part:
            padded = torch.cat([columns[whole:], columns.new_zeros(8, 32)])
            found.append(bits(units(padded)[0, :, :, 0].transpose(0, 1).reshape(-1)))  # lane, tile, 2
    return torch.cat([*found, bits(b[order(tiles)].float())])


def tiles(channels: int, rolled: bool, capability: int) -> dict[str, int]:
    """WARPS: rows of 16 pixels of a block; BLOCKS a multiprocessor; EARLY: x is read before the last attention."""
    if channels <= 64:
        return {"WARPS": 8, "BLOCKS": 2, "EARLY": 1}
    return {"WARPS": 8, "BLOCKS": 1 if rolled else 2, "EARLY": 0}


def fits(channels: int, part: int, capability: int) -> bool:
    """Whether a block finds room in that GPU's shared memory."""
    warps = tiles(channels, True, capability)["WARPS"]
    return shared_bytes(channels, part, True, warps) <= SHARED_KIB.get(capability, 99) * 1024


def shared_bytes(channels: int, part: int, rolled: bool, warps: int) -> int:
    """Shared memory of a block; tile.cu asserts the same number."""
    pitch = part * 2 if part // 8 % 2 else part * 2 + 16
    areas = [(16 + 2 * margin) * (warps + 2 * margin) for margin in ((2, 4) if rolled else (0, 0))]
    count = -(-channels // 8)
    weights = -(-count // 4) * (3 * part // 16 * 1024 + (512 if 3 * part % 16 else 0))
    return -(-2 * max(areas) * pitch // 128) * 128 + max(2 * 256 * pitch, weights)


def launch(
    q: Tensor,
    v: Tensor,
    x: Tensor,
    blob: Tensor,
    out: Tensor,
    channels: int,
    rolled: bool,
    extra: Tensor | None = None,
    capability: int = 90,
    label: str = "",
    **variant: int,
) -> Launch:
    """The launch; arrays as in reference.window_attention, `blob` from `pack`. `out` may be `x`; `variant` overrides
    `tiles`."""
    n, h, w, part = v.shape
    part //= 3
    if h % 16 or w % 16:
        raise ValueError(f"{h} x {w} pixels are no multiple of 16")
    cut = {**tiles(channels, rolled, capability), **variant}
    constants = {
        "C": channels,
        "DS": part,
        "ROLLED": int(rolled),
        "ADD": int(extra is not None),
        "BF16": int("bfloat16" in str(x.dtype)),
        "OVERLAP": 0,
        **cut,
        "SHARED": shared_bytes(channels, part, rolled, cut["WARPS"]),
    }
    pixels = n * h * w
    return Launch(
        KERNEL,
        {"q": q, "v": v, "x": x, "extra": x if extra is None else extra, "blob": blob, "out": out},
        {"h": h, "w": w},
        constants,
        (w // 16, h // cut["WARPS"], n),
        warps=cut["WARPS"],
        flops=2 * pixels * channels * (channels + 2 * sum(s * s for s in WINDOWS) // 3),
        moved=pixels * channels * x.element_size() * (4 + (extra is not None)),
        label=label,
    )
