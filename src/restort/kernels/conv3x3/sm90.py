"""The launch of sm90.cu (compute capability 9.0), DOWN and UP: its tilings and its weights."""

from __future__ import annotations

from typing import Any

from restort.kernels.conv3x3.triton import DOWN, UP
from restort.kernels.fragments import as_int32
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import cdiv, round_up

Tensor = Any

SPEC = KernelSpec("conv3x3_sm90", __file__, ("wgmma.cuh",), only_sm90=True, overlaps=True)
TILE_W = 16
COLUMNS = {DOWN: (96, 48, 24), UP: (192, 96, 48)}  # results of a pixel that a block may have
FILLED = 0.8  # blocks per SM that are enough
CHUNK = 48  # channels whose weights come in a stage


def most_columns(mode: int, rows: int) -> int:
    """Return how many of a pixel's results a block has where pixels are many; 0 where they cannot be divided so."""
    return next((columns for columns in COLUMNS[mode] if rows % columns == 0), 0)


def tilings(mode: int, channels: int, rows: int) -> list[tuple[float, dict[str, int]]]:
    """Return the tilings of a convolution, each with the blocks per SM from which on it is worth having.

    Where pixels are few, tiles are made smaller, and then results a block, until most SMs have one. Each of these sets
    has been run and timed on an H100 with a convolution of a Restormer; the last one serves the fewest pixels.
    """
    most = most_columns(mode, rows)
    if channels == CHUNK and most == 24:  # all weights at once
        whole = {"COLUMNS": 24, "TAPS": 9, "SLOTS": 1, "DEFER": 0}
        return [(FILLED, {**whole, "PARTS": 2, "BLOCKS": 3}), (FILLED, {**whole, "PARTS": 1, "BLOCKS": 5})]
    ring = {"COLUMNS": most, "TAPS": 1, "SLOTS": 4}
    found: list[tuple[float, dict[str, int]]] = []
    if most == 48:  # twice as many as have a place at a time: a few more than have one would take as long
        found.append((6, {**ring, "PARTS": 1, "BLOCKS": 3, "DEFER": 0}))
    if most > 24:
        found.append((FILLED, {**ring, "PARTS": 1 if most == 192 else 2, "BLOCKS": 2, "DEFER": 1}))
    for columns in COLUMNS[mode]:
        if columns <= min(most, 96) and rows % columns == 0:
            slots = 3 if columns <= 48 else 2
            few = {"PARTS": 1, "COLUMNS": columns, "TAPS": 3, "SLOTS": slots, "BLOCKS": 2, "DEFER": 0}
            found.append((FILLED, few))
    return found


def tiling(mode: int, channels: int, rows: int, n: int, h: int, w: int, num_sms: int = 132) -> dict[str, int]:
    """Return the macros of a tiling.

    WARPS, BLOCKS   warps in a block, blocks per SM.
    COLUMNS         results of a pixel that a block has; the weights are packed for it and for CHUNK.
    CHUNK, TAPS     channels and taps (1, 3, 9) whose weights come in a stage.
    SLOTS           stages in shared memory.
    DEFER           1: a stage's products are waited for in the next (SLOTS > 2, not all TAPS).
    PARTS           squares of 8 x 8 pixels to each four warps: a tile is 16 x WARPS * PARTS pixels.
    """
    for worth, macros in tilings(mode, channels, rows):
        blocks = n * cdiv(h, 8 * macros["PARTS"]) * cdiv(w, TILE_W) * (rows // macros["COLUMNS"])
        if blocks >= worth * num_sms:
            break
    return {"WARPS": 8, "CHUNK": CHUNK, **macros}


def fits(mode: int, channels: int, rows: int, dtype: Any, capability: int) -> bool:
    """Return whether the kernel takes such a convolution and that GPU can run it, with any of its tilings."""
    return (
        SPEC.fits(0, capability)
        and dtype.itemsize == 2
        and channels % CHUNK == 0
        and most_columns(mode, rows) > 0
        and (mode == DOWN or rows % 32 == 0)
    )


def pays(
    mode: int,
    channels: int,
    rows: int,
    n: int,
    h: int,
    w: int,
    dtype: Any,
    capability: int,
    num_sms: int = 132,
) -> bool:
    """Return whether it fits and should be faster than Triton's kernel: where half of the SMs have a block."""
    if not fits(mode, channels, rows, dtype, capability):
        return False
    macros = tiling(mode, channels, rows, n, h, w, num_sms)
    tall, shares = macros["WARPS"] * macros["PARTS"], rows // macros["COLUMNS"]
    return 2 * n * cdiv(h, tall) * cdiv(w, TILE_W) * shares >= num_sms


def pack(w: Tensor, channels: int, macros: dict[str, int]) -> Tensor:
    """Return the weights (rows, 3, K) of reference.conv3x3, int32, in the order of launches with these macros.

    They are right operands of products, a column's 8 rows together.
    """
    rows = w.shape[0]
    taps = w[:, :, : 3 * channels].reshape(rows, 9, channels).permute(1, 2, 0)  # (9, C, rows)
    columns, chunk = macros["COLUMNS"], macros["CHUNK"]
    parts = taps.reshape(9, channels // chunk, chunk // 8, 8, rows // columns, columns // 8, 8)
    return as_int32(parts.permute(4, 1, 0, 2, 5, 6, 3).reshape(-1))


def shared_bytes(mode: int, channels: int, macros: dict[str, int]) -> int:
    """Return the shared memory of a block; sm90.cu asserts the same number."""
    columns, chunk = macros["COLUMNS"], macros["CHUNK"]
    tall = macros["WARPS"] * macros["PARTS"]
    pixels = round_up(chunk // 8 * (18 * (tall + 2) * 16 + 16), 128)
    weights = macros["SLOTS"] * macros["TAPS"] * chunk * columns * 2
    cell, pixel = columns * 8 // 128 * 128 + 64, (columns // 8 | 1) * 16
    results = tall * (4 * cell if mode == DOWN else 16 * pixel)
    return max((2 if channels > chunk else 1) * pixels + weights, results)


def launch(
    mode: int,
    x: Tensor,
    blob: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    extra: Tensor | None = None,
    label: str = "",
    num_sms: int = 132,
    **overrides: int,
) -> Launch:
    """Return a launch as triton.launch does, with `blob` from `pack`. `overrides` replaces macros of `tiling`."""
    n, h, w, channels = x.shape
    rows = bias.shape[0]
    chosen = {**tiling(mode, channels, rows, n, h, w, num_sms), **overrides}
    tall = chosen["WARPS"] * chosen["PARTS"]
    return SPEC.launch(
        {"x": x, "blob": blob, "bias": bias, "extra": x if extra is None else extra, "y": y},
        {"h": h, "w": w},
        {"C": channels, "ROWS": rows, "EXTRA": int(extra is not None), "MODE": mode, **chosen},
        (rows // chosen["COLUMNS"] * cdiv(w, TILE_W), cdiv(h, tall), n),
        dtype=x.dtype,
        shared=shared_bytes(mode, channels, chosen),
        flops=2 * n * h * w * 9 * channels * rows,
        moved=sum(t.numel() * t.dtype.itemsize for t in (x, blob, y) + (() if extra is None else (extra,))),
        label=label,
    )
