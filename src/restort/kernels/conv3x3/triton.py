"""The kernel in Triton: an implicit matrix product, whose result is stored in one of three ways.

The three neighbours of a row lie side by side in memory, so for each dy the product runs over 3 C contiguous numbers
that begin one pixel to the left.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, triton_launch
from restort.kernels.triton_helpers import dot, dot_precision
from restort.utils.integers import cdiv

Tensor = Any

DOWN, UP, LAST = 0, 1, 2


@triton.jit(do_not_specialize=["P", "H", "W"])
def conv3x3_kernel(
    x, w, bias, extra, y, P, H, W,
    C: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, MODE: tl.constexpr, EXTRA: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    SHARES: tl.constexpr = (ROWS + BN - 1) // BN
    tile, share = tl.program_id(0) // SHARES, tl.program_id(0) % SHARES
    n = share * BN + tl.arange(0, BN)
    p = tile * BM + tl.arange(0, BM)
    valid = p < P
    if MODE == 0:  # four neighbours of a cell follow one another
        cell, corner = p // 4, p % 4
        line = cell // (W // 2)  # of all images
        row = (line % (H // 2)) * 2 + corner // 2
        column = (cell % (W // 2)) * 2 + corner % 2
        image = line // (H // 2)
        pixel = (image * H + row).to(tl.int64) * W + column
    else:
        column = p % W
        row = p // W % H
        image = p // (W * H)
        pixel = p.to(tl.int64)
    inside = n < ROWS
    k = tl.arange(0, BK)
    at = x + (pixel * C - C)[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    STEPS: tl.constexpr = K // BK
    for i in range(3 * STEPS):
        dy = i // STEPS - 1
        f = i % STEPS * BK + k
        there = column[:, None] + (f // C - 1)[None, :]
        mask = (
            (valid & (row + dy >= 0) & (row + dy < H))[:, None]
            & (there >= 0)
            & (there < W)
            & (f < 3 * C)[None, :]
        )
        a = tl.load(at + (dy * W * C + f)[None, :], mask=mask, other=0.0)
        rows = tl.load(w + n[:, None] * (3 * K) + (i * BK + k)[None, :], mask=inside[:, None], other=0.0)
        acc = dot(a, tl.trans(rows), acc, PRECISION)
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    if MODE == 0:
        out = tl.reshape(
            tl.permute(tl.reshape(acc.to(y.dtype.element_ty), [BM // 4, 4, BN]), [0, 2, 1]), [BM // 4, 4 * BN]
        )
        cells = tile * (BM // 4) + tl.arange(0, BM // 4)
        m = share * (4 * BN) + tl.arange(0, 4 * BN)
        to = y + cells.to(tl.int64)[:, None] * (4 * ROWS) + m[None, :]
        tl.store(to, out, mask=(cells < P // 4)[:, None] & (m < 4 * ROWS)[None, :])
    elif MODE == 1:
        N: tl.constexpr = ROWS // 4
        corner = n // N
        channel = n % N
        # pixel of the larger picture: rows 2 r + dy, columns 2 c + dx
        large = (image * H + row).to(tl.int64) * (4 * W) + 2 * column
        shift = corner // 2 * (2 * W) + corner % 2
        mask = valid[:, None] & inside[None, :]
        if EXTRA:
            to = y + (large * (2 * N))[:, None] + (shift * (2 * N) + channel)[None, :]
            tl.store(to, acc.to(y.dtype.element_ty), mask=mask)
            beside = tl.load(
                extra + (large * N)[:, None] + (shift * N + channel)[None, :], mask=mask, other=0.0
            )
            tl.store(to + N, beside, mask=mask)
        else:
            to = y + (large * N)[:, None] + (shift * N + channel)[None, :]
            tl.store(to, acc.to(y.dtype.element_ty), mask=mask)
    else:
        plane = H * W
        to = (image.to(tl.int64) * (ROWS * plane) + row * W + column)[:, None] + n[None, :] * plane
        mask = valid[:, None] & inside[None, :]
        if EXTRA:
            acc += tl.load(extra + to, mask=mask, other=0.0)
        tl.store(y + to, acc, mask=mask)


def tiling(rows: int, pixels: int, step: int, num_sms: int = 132) -> dict[str, int]:
    """Return BM pixels, BN columns and BK inputs of a step, warps and stages."""
    bn = 128 if rows > 128 else 64 if rows > 32 else 32 if rows > 16 else 16
    bm = 64 if cdiv(pixels, 128) * cdiv(rows, bn) < 2 * num_sms else 128
    if rows > 64:  # benchmarks/tune_kernels.py on an H100
        return {"BM": bm, "BN": bn, "BK": step, "warps": 8 if bm == 128 else 4, "stages": 3}
    return {"BM": bm, "BN": bn, "BK": step, "warps": 4, "stages": 4}


def launch(
    mode: int,
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    step: int,
    extra: Tensor | None = None,
    label: str = "",
    num_sms: int = 132,
) -> Launch:
    """Return a launch of `mode` DOWN, UP or LAST. `step` divides K.

    `extra`: channels to put beside UP's result, or the image to add to LAST's.
    """
    n, h, width, channels = x.shape
    rows, _, k = w.shape
    pixels = n * h * width
    chosen = tiling(rows, pixels, step, num_sms)
    constants = {"C": channels, "ROWS": rows, "K": k, "MODE": mode, "EXTRA": extra is not None, **chosen}
    return triton_launch(
        conv3x3_kernel,
        {"x": x, "w": w, "bias": bias, "extra": bias if extra is None else extra, "y": y},
        {"P": pixels, "H": h, "W": width},
        {**constants, "PRECISION": dot_precision(x.dtype)},
        (cdiv(rows, chosen["BN"]) * cdiv(pixels, chosen["BM"]),),
        flops=2 * pixels * 9 * channels * rows,
        moved=sum(t.numel() * t.dtype.itemsize for t in (x, w, y) + (() if extra is None else (extra,))),
        label=label,
    )
