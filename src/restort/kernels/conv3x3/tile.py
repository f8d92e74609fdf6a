"""The same by kernels in CUDA C++ for compute capability 9.0 alone: tile.cu (DOWN, UP) and last.cu (LAST)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.common import divide
from restort.kernels.conv3x3.kernel import DOWN, LAST, UP
from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import bits
from restort.kernels.launch import Launch

Tensor = Any

KERNEL = CudaKernel("conv3x3_tile", Path(__file__).with_name("tile.cu"))
LAST_KERNEL = CudaKernel("conv3x3_last", Path(__file__).with_name("last.cu"))
CAPABILITY = 90  # wgmma is in no other
SHARED_BYTES = 227 * 1024
COLUMNS = {DOWN: (96, 48, 24), UP: (192, 96, 48)}  # results of a pixel that a block may have
FILLED = 0.8  # blocks a multiprocessor that are enough
CHUNK = 48  # channels whose weights come in a stage
LAST_COLUMNS = 32  # nine for each result


def columns(mode: int, rows: int) -> int:
    """How many of a pixel's results a block has where pixels are many; 0 where it cannot be cut so."""
    return next((one for one in COLUMNS[mode] if rows % one == 0), 0)


def ways(mode: int, channels: int, rows: int) -> list[tuple[float, dict[str, int]]]:
    """The ways to cut a convolution, and how many blocks a multiprocessor each is worth having for.

    Where pixels are few, tiles are made smaller, and then results a block, until most multiprocessors have one. Each
    of these sets has been run and timed on an H100 with a convolution of a Restormer; the last one serves the fewest.
    """
    most = columns(mode, rows)
    if channels == CHUNK and most == 24:  # all weights at once
        whole = {"COLUMNS": 24, "TAPS": 9, "SLOTS": 1, "DEFER": 0}
        return [(FILLED, {**whole, "PARTS": 2, "BLOCKS": 3}), (FILLED, {**whole, "PARTS": 1, "BLOCKS": 5})]
    ring = {"COLUMNS": most, "TAPS": 1, "SLOTS": 4}
    found: list[tuple[float, dict[str, int]]] = []
    if most == 48:  # twice as many as have a place at a time: a few more than have one would take as long
        found.append((6, {**ring, "PARTS": 1, "BLOCKS": 3, "DEFER": 0}))
    if most > 24:
        found.append((FILLED, {**ring, "PARTS": 1 if most == 192 else 2, "BLOCKS": 2, "DEFER": 1}))
    for made in COLUMNS[mode]:
        if made <= min(most, 96) and rows % made == 0:
            slots = 3 if made <= 48 else 2
            few = {"PARTS": 1, "COLUMNS": made, "TAPS": 3, "SLOTS": slots, "BLOCKS": 2, "DEFER": 0}
            found.append((FILLED, few))
    return found


def cut(mode: int, channels: int, rows: int, n: int, h: int, w: int, processors: int = 132) -> dict[str, int]:
    """How a convolution is cut up (benchmarks/tune_kernels.py).

    WARPS, BLOCKS   warps in a block, blocks a multiprocessor.
    COLUMNS         results of a pixel that a block has; the weights are packed for it and for CHUNK.
    CHUNK, TAPS     channels and taps (1, 3, 9) whose weights come in a stage.
    SLOTS           stages in shared memory.
    DEFER           1: a stage's products are waited for in the next (SLOTS > 2, not all TAPS).
    PARTS           squares of 8 x 8 pixels to each four warps: a tile is 16 x WARPS * PARTS pixels.
    TALL            (LAST) the tile's rows.
    """
    if mode == LAST:
        return {"WARPS": 8, "TALL": 16, "BLOCKS": 3 if channels <= 96 else 1}
    for worth, how in ways(mode, channels, rows):
        blocks = n * divide(h, 8 * how["PARTS"]) * divide(w, 16) * (rows // how["COLUMNS"])
        if blocks >= worth * processors:
            break
    return {"WARPS": 8, "CHUNK": CHUNK, **how}


def fits(mode: int, channels: int, rows: int, dtype: Any, capability: int) -> bool:
    """Whether that GPU can run it."""
    if capability != CAPABILITY or dtype.itemsize != 2:
        return False
    if mode == LAST:
        constants = cut(mode, channels, rows, 1, 16, 16)
        return (
            channels % 16 == 0
            and 9 * rows <= LAST_COLUMNS
            and last_shared_bytes(channels, rows, constants) <= SHARED_BYTES
        )
    return channels % CHUNK == 0 and columns(mode, rows) > 0 and (mode == DOWN or rows % 32 == 0)


def pays(
    mode: int,
    channels: int,
    rows: int,
    n: int,
    h: int,
    w: int,
    dtype: Any,
    capability: int,
    processors: int = 132,
) -> bool:
    """Whether it fits and should be faster than Triton's: where half of the multiprocessors have a block."""
    if not fits(mode, channels, rows, dtype, capability):
        return False
    how = cut(mode, channels, rows, n, h, w, processors)
    tall, shares = (how["TALL"], 1) if mode == LAST else (how["WARPS"] * how["PARTS"], rows // how["COLUMNS"])
    return 2 * n * divide(h, tall) * divide(w, 16) * shares >= processors


def pack(mode: int, w: Tensor, channels: int, how: dict[str, int]) -> Tensor:
    """Weights (rows, 3, K) as in reference.conv3x3, int32, in the kernels' order, for launches that are cut so.

    They are right operands of products, a column's 8 rows together.
    """
    rows = w.shape[0]
    taps = w[:, :, : 3 * channels].reshape(rows, 9, channels).permute(1, 2, 0)  # (9, C, rows)
    if mode == LAST:
        matrix = taps.permute(1, 0, 2).reshape(channels, 9 * rows)
        matrix = torch.cat([matrix, matrix.new_zeros(channels, LAST_COLUMNS - 9 * rows)], 1)
        return bits(matrix.reshape(-1, 8, LAST_COLUMNS // 8, 8).permute(0, 2, 3, 1).reshape(-1))
    made, chunk = how["COLUMNS"], how["CHUNK"]
    parts = taps.reshape(9, channels // chunk, chunk // 8, 8, rows // made, made // 8, 8)
    return bits(parts.permute(4, 1, 0, 2, 5, 6, 3).reshape(-1))


def shared_bytes(mode: int, channels: int, constants: dict[str, int]) -> int:
    """Shared memory of a block; tile.cu asserts the same number."""
    made, chunk = constants["COLUMNS"], constants["CHUNK"]
    tall = constants["WARPS"] * constants["PARTS"]
    pixels = divide(chunk // 8 * (18 * (tall + 2) * 16 + 16), 128) * 128
    weights = constants["SLOTS"] * constants["TAPS"] * chunk * made * 2
    cell, pixel = made * 8 // 128 * 128 + 64, (made // 8 | 1) * 16
    return max(
        (2 if channels > chunk else 1) * pixels + weights, tall * (4 * cell if mode == DOWN else 16 * pixel)
    )


def last_shared_bytes(channels: int, rows: int, constants: dict[str, int]) -> int:
    """Likewise of last.cu."""
    units, pixels, groups = channels // 8, 18 * (constants["TALL"] + 2), constants["WARPS"] // 4
    unit, read = pixels * 16 + 16, divide(pixels, 64 * groups) * groups * 1024
    weights = divide(units * unit, 128) * 128 + channels * LAST_COLUMNS * 2
    beyond = divide((units - 1) * unit + read, 128) * 128
    return max(weights, beyond, 9 * rows * ((pixels + 27) // 32 * 32 + 4) * 4)


def launch(
    mode: int,
    x: Tensor,
    blob: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    extra: Tensor | None = None,
    label: str = "",
    processors: int = 132,
    **variant: int,
) -> Launch:
    """As kernel.launch, with `blob` from `pack`. `variant` overrides `cut`."""
    n, h, w, channels = x.shape
    rows = bias.shape[0]
    constants = {**cut(mode, channels, rows, n, h, w, processors), **variant}
    made = {
        "C": channels,
        "ROWS": rows,
        "EXTRA": int(extra is not None),
        "BF16": int("bfloat16" in str(x.dtype)),
        "WGMMA": 1,
        "OVERLAP": 0,
        **constants,
    }
    if mode == LAST:
        made["SHARED"] = last_shared_bytes(channels, rows, constants)
        grid = divide(w, 16), divide(h, constants["TALL"]), n
    else:
        made |= {"MODE": mode, "SHARED": shared_bytes(mode, channels, constants)}
        tall = constants["WARPS"] * constants["PARTS"]
        grid = rows // constants["COLUMNS"] * divide(w, 16), divide(h, tall), n
    assert mode in (DOWN, UP, LAST)
    other = bias if mode == LAST else x  # of the same type, where there is none
    return Launch(
        LAST_KERNEL if mode == LAST else KERNEL,
        {"x": x, "blob": blob, "bias": bias, "extra": other if extra is None else extra, "y": y},
        {"h": h, "w": w},
        made,
        grid,
        warps=constants["WARPS"],
        flops=2 * n * h * w * 9 * channels * rows,
        moved=sum(t.numel() * t.dtype.itemsize for t in (x, blob, y) + (() if extra is None else (extra,))),
        label=label,
    )
