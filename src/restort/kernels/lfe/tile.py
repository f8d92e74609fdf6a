"""The same by a kernel in CUDA C++ (tile.cu), which keeps its pixels on chip: its weights, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import bits, order, units
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("lfe_tile", Path(__file__).with_name("tile.cu"))
HIDDEN = 24  # hidden channels a step


def suits(channels: int, hidden: int, dtype: Any) -> bool:
    """Whether the kernel can run this network: groups in halves of 16 bytes, hidden channels in 24s."""
    return (
        channels % 20 == 0
        and channels <= 192
        and hidden == 2 * channels // 5
        and hidden % HIDDEN == 0
        and (dtype.itemsize == 2)
    )


def _steps(matrix: Tensor) -> Tensor:
    """Two steps of all tiles after one another, 16 bytes of a lane at a time."""
    cut = units(matrix)
    steps, tiles = cut.shape[:2]
    pairs = cut.reshape(steps // 2, 2 * tiles, 32, 2, 2).permute(0, 2, 1, 3, 4)
    return pairs.reshape(steps // 2, 32, tiles, 8).transpose(1, 2).reshape(-1)


def _columns(matrix: Tensor) -> Tensor:
    """24 rows of four tiles after one another, 16 bytes of a lane at a time."""
    padded = torch.cat([matrix, matrix.new_zeros(8, matrix.shape[1])])
    cut = units(padded)  # (2, tiles, 32, 2, 2): 16 rows, then 8
    three = torch.cat([cut[0], cut[1][:, :, :1]], 2)  # (tiles, 32, 3, 2)
    fours = three.reshape(-1, 4, 32, 3, 2).permute(0, 2, 1, 3, 4).reshape(-1, 32, 3, 8)
    return fours.transpose(1, 2).reshape(-1)


def _bias(array: Tensor) -> Tensor:
    """As 32 words, or all of them where they are more."""
    array = array.float()
    return bits(torch.cat([array, array.new_zeros(max(0, 32 - len(array)))]))


def pack(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor] | None,
    channels: int,
    part: int,
) -> Tensor:
    """All weights of a block, int32, in the kernel's order; arguments as in reference.lfe. `part`: DS."""
    w0, b0, w1, b1 = weights
    hidden = 2 * channels // 5
    rows = -(-channels // 32) * 32
    tiles = -(-channels // 8)
    mine = order(tiles)
    inputs = mine + list(range(8 * tiles, rows))
    wide = torch.cat([w1[:, :, mine], w1.new_zeros(5, w1.shape[1], (-tiles % 4) * 8)], 2)
    found = []
    for g in range(5):
        for first in range(0, hidden, HIDDEN):
            piece = slice(first, first + HIDDEN)
            found += [
                bits(_steps(w0[g, :rows, piece])),
                bits(_columns(wide[g, piece])),
                _bias(b0[g, piece]),
            ]
    for w, b in (values, queries or values):
        matrix = torch.cat([w[i, inputs, :part] for i in range(3)], 1)
        bias = torch.cat([b[i, :part] for i in range(3)])
        theirs = order(3 * part // 8)
        for first in range(0, 3 * part, 32):
            some = theirs[first : first + 32]
            found += [bits(_steps(matrix[:, some])), _bias(bias[some])]
    return torch.cat([*found, bits(b1[mine].float())])


def tiles(channels: int, capability: int) -> dict[str, int]:
    """Warps (two rows of 16 pixels each), pieces of weights in the ring (0: all are kept), blocks a multiprocessor."""
    if channels <= 64:
        return (
            {"WARPS": 8, "STAGES": 0, "BLOCKS": 2}
            if _room(capability) > 200
            else {"WARPS": 4, "STAGES": 0, "BLOCKS": 1}
        )
    return {"WARPS": 4, "STAGES": 2, "BLOCKS": 1}


def _room(capability: int) -> int:
    return SHARED_KIB.get(capability, 99)


def fits(channels: int, part: int, capability: int) -> bool:
    """Whether a block finds room in that GPU's shared memory."""
    cut = tiles(channels, capability)
    return shared_bytes(channels, part, True, cut["WARPS"], cut["STAGES"]) <= _room(capability) * 1024


def shared_bytes(channels: int, part: int, has_q: bool, warps: int, stages: int) -> int:
    """Shared memory of a block; tile.cu asserts the same number."""
    steps, count = -(-channels // 32) * 2, -(-channels // 8)
    tile = 18 * (2 * warps + 2) * (steps * 32 + 16)
    piece = (steps // 2 + -(-count // 4)) * 3 * 512 + 128
    made = 3 * part // 8
    whole = steps // 2 * made * 512 + -(-made // 4) * 128
    weights = stages * piece or 2 * channels // 24 * piece + (2 if has_q else 1) * whole
    return -(-tile // 128) * 128 + weights


def launch(
    x: Tensor,
    blob: Tensor,
    has_q: bool,
    out: Tensor,
    v: Tensor,
    q: Tensor,
    channels: int,
    capability: int = 90,
    label: str = "",
    **variant: int,
) -> Launch:
    """The launch; arrays as in reference.lfe, `blob` from `pack`. `variant` overrides `tiles`."""
    n, h, w, _ = x.shape
    h, w = h - 4, w - 4
    part = v.shape[3] // 3
    cut = {**tiles(channels, capability), **variant}
    tall = 2 * cut["WARPS"]
    if h % 16 or w % 16:
        raise ValueError(f"{h} x {w} pixels are no multiple of 16")
    constants = {
        "C": channels,
        "DS": part,
        "HAS_Q": int(has_q),
        "BF16": int("bfloat16" in str(x.dtype)),
        "OVERLAP": 0,
        **cut,
        "SHARED": shared_bytes(channels, part, has_q, cut["WARPS"], cut["STAGES"]),
    }
    pixels, parts = n * h * w, 6 if has_q else 3
    return Launch(
        KERNEL,
        {"x": x, "blob": blob, "out": out, "v": v, "q": q},
        {"h": h, "w": w},
        constants,
        (w // 16, h // tall, n),
        warps=cut["WARPS"],
        flops=2 * pixels * channels * (4 * channels + parts * (channels // 3)),
        moved=pixels * x.element_size() * (2 * channels + parts * (channels // 3)),
        label=label,
    )
