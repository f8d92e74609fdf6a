"""Normalisation and expansion in Triton.

A program keeps the raw channels of its pixels and runs over the rows of w, so x is read once; the normalisation is
applied to the product (rstd * (acc - mean * sums) + shift). With `apply` it first adds the attention's contribution
to x, stores that, and goes on with it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.common import divide, halves, precision, product
from restort.kernels.launch import Launch

Tensor = Any


@triton.jit
def _statistics(x1, x2, C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr):
    """Mean and 1 / sqrt(var + 1e-5) of each row of [x1 | x2], which are zero beyond C; in two passes."""
    a = x1.to(tl.float32)
    total = tl.sum(a, 1)
    if K2 > 0:
        b = x2.to(tl.float32)
        total += tl.sum(b, 1)
    mean = total * (1.0 / C)
    a = tl.where((tl.arange(0, K1) < C)[None, :], a - mean[:, None], 0.0)
    square = tl.sum(a * a, 1)
    if K2 > 0:
        b = tl.where((K1 + tl.arange(0, K2) < C)[None, :], b - mean[:, None], 0.0)
        square += tl.sum(b * b, 1)
    return mean, tl.rsqrt(square * (1.0 / C) + 1e-5)


@triton.jit
def _expand(
    x1, x2, mean, scale, w, affine, y, pixel, valid, first,
    C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k1 = tl.arange(0, K1)
    for j in range(first, first + COLUMNS, BN):
        n = j + tl.arange(0, BN)
        inside = n < M
        w1 = tl.load(w + n[:, None] * C + k1[None, :], mask=inside[:, None] & (k1 < C)[None, :], other=0.0)
        acc = product(x1, tl.trans(w1), tl.zeros([x1.shape[0], BN], tl.float32), PRECISION)
        if K2 > 0:
            k2 = K1 + tl.arange(0, K2)
            w2 = tl.load(
                w + n[:, None] * C + k2[None, :], mask=inside[:, None] & (k2 < C)[None, :], other=0.0
            )
            acc = product(x2, tl.trans(w2), acc, PRECISION)
        sums = tl.load(affine + n, mask=inside, other=0.0)
        shift = tl.load(affine + M + n, mask=inside, other=0.0)
        acc = scale[:, None] * (acc - mean[:, None] * sums[None, :]) + shift[None, :]
        tl.store(
            y + pixel[:, None] * M + n[None, :],
            acc.to(y.dtype.element_ty),
            mask=valid[:, None] & inside[None, :],
        )


@triton.jit(do_not_specialize=["P"])
def _norm_expand(
    x, w, affine, y, P,
    C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, M: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    SHARES: tl.constexpr = (M + COLUMNS - 1) // COLUMNS
    offset = tl.program_id(0) // SHARES * BM + tl.arange(0, BM)
    valid = offset < P
    pixel = offset.to(tl.int64)
    k1 = tl.arange(0, K1)
    x1 = tl.load(x + pixel[:, None] * C + k1[None, :], mask=valid[:, None] & (k1 < C)[None, :], other=0.0)
    x2 = x1
    if K2 > 0:
        k2 = K1 + tl.arange(0, K2)
        x2 = tl.load(x + pixel[:, None] * C + k2[None, :], mask=valid[:, None] & (k2 < C)[None, :], other=0.0)
    mean, scale = _statistics(x1, x2, C, K1, K2)
    _expand(
        x1, x2, mean, scale, w, affine, y, pixel, valid, tl.program_id(0) % SHARES * COLUMNS,
        C, K1, K2, M, BN, COLUMNS, PRECISION,
    )  # fmt: skip


@triton.jit
def _applied(
    x, v1, v2, fold, bias, out, pixel, valid, kept, first,
    C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Channels first .. first + BN of x + v @ fold^T + bias, stored and returned."""
    n = first + tl.arange(0, BN)
    inside = n < C
    k1 = tl.arange(0, K1)
    m1 = tl.load(fold + n[:, None] * C + k1[None, :], mask=inside[:, None] & (k1 < C)[None, :], other=0.0)
    acc = product(v1, tl.trans(m1), tl.zeros([v1.shape[0], BN], tl.float32), PRECISION)
    if K2 > 0:
        k2 = K1 + tl.arange(0, K2)
        m2 = tl.load(fold + n[:, None] * C + k2[None, :], mask=inside[:, None] & (k2 < C)[None, :], other=0.0)
        acc = product(v2, tl.trans(m2), acc, PRECISION)
    at = pixel[:, None] * C + n[None, :]
    mask = valid[:, None] & inside[None, :]
    acc += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    acc = acc.to(out.dtype.element_ty)
    tl.store(out + at, acc, mask=kept[:, None] & inside[None, :])
    return acc


@triton.jit(do_not_specialize=["P"])
def _apply_norm_expand(
    x, v, fold, bias, out, w, affine, y, P,
    C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, M: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    SHARES: tl.constexpr = (M + COLUMNS - 1) // COLUMNS
    n = tl.program_id(1)
    share = tl.program_id(0) % SHARES
    offset = tl.program_id(0) // SHARES * BM + tl.arange(0, BM)
    valid = offset < P
    pixel = n.to(tl.int64) * P + offset
    k1 = tl.arange(0, K1)
    v1 = tl.load(v + pixel[:, None] * C + k1[None, :], mask=valid[:, None] & (k1 < C)[None, :], other=0.0)
    v2 = v1
    if K2 > 0:
        k2 = K1 + tl.arange(0, K2)
        v2 = tl.load(v + pixel[:, None] * C + k2[None, :], mask=valid[:, None] & (k2 < C)[None, :], other=0.0)
    fold += n * C * C
    kept = offset < tl.where(share == 0, P, 0)
    x1 = _applied(x, v1, v2, fold, bias, out, pixel, valid, kept, 0, C, K1, K2, K1, PRECISION)
    x2 = x1
    if K2 > 0:
        x2 = _applied(x, v1, v2, fold, bias, out, pixel, valid, kept, K1, C, K1, K2, K2, PRECISION)
    mean, scale = _statistics(x1, x2, C, K1, K2)
    _expand(
        x1, x2, mean, scale, w, affine, y, pixel, valid, share * COLUMNS,
        C, K1, K2, M, BN, COLUMNS, PRECISION,
    )  # fmt: skip


def tiles(
    channels: int, rows: int, pixels: int, capability: int = 90, processors: int = 132, attends: bool = False
) -> dict[str, int]:
    """Pixels and columns a step, columns a program, warps and stages, for so many channels, rows of w and pixels.

    Where pixels alone do not fill the GPU, the columns are shared out too; fewer of them if each program has to apply
    the attention first.
    """
    small = capability not in (80, 90, 100)  # 99 KB of shared memory
    bm = 64 if channels > 96 or pixels <= 64 * 4 * processors else 128
    bn = 64 if rows % 64 == 0 and not (channels > 192 and small) else 32
    warps = 8 if channels > 192 else 4
    if channels > 96 and capability in (90, 100) and not attends:  # benchmarks/tune_kernels.py on an H100
        if pixels <= 64 * 64:
            bn, warps = (128 if rows % 64 == 0 else bn), 4
        elif channels > 192:
            bm = 128
    programs = divide(pixels, bm)
    steps = divide(rows, bn)
    share = steps
    while share > 1 and programs * divide(steps, share) < (1 if attends else 2) * processors:
        share = divide(share, 2)
    stages = min(share, 2 if channels > 96 or small else 3)
    if channels > 192 and bn == 128:  # two of them would be 250 KB
        stages = 1
    return {"BM": bm, "BN": bn, "COLUMNS": share * bn, "warps": warps, "stages": stages}


def launch(
    x: Tensor, w: Tensor, affine: Tensor, y: Tensor,
    *, label: str = "", capability: int = 90, processors: int = 132,
) -> Launch:  # fmt: skip
    """y (..., M) from x (..., C): see the reference."""
    channels, rows = x.shape[-1], w.shape[0]
    pixels = x.numel() // channels
    tile = tiles(channels, rows, pixels, capability, processors)
    warps, stages = tile.pop("warps"), tile.pop("stages")
    k1, k2 = halves(channels)
    constants = {"C": channels, "K1": k1, "K2": k2, "M": rows, **tile, "PRECISION": precision(x.dtype)}
    return Launch(
        _norm_expand,
        {"x": x, "w": w, "affine": affine, "y": y},
        {"P": pixels},
        constants,
        (divide(rows, tile["COLUMNS"]) * divide(pixels, tile["BM"]),),
        warps,
        stages,
        flops=2 * pixels * channels * rows,
        moved=x.dtype.itemsize * (pixels * (channels + rows) + channels * rows),
        label=label,
    )


def shared(
    n: int, pixels: int, channels: int, rows: int, capability: int = 90, processors: int = 132
) -> bool:
    """Whether `launch_apply` lets several programs read the same pixels, so that `out` must not be `x`."""
    return tiles(channels, rows, n * pixels, capability, processors, True)["COLUMNS"] < rows


def launch_apply(
    x: Tensor, v: Tensor, fold: Tensor, bias: Tensor, out: Tensor, w: Tensor, affine: Tensor, y: Tensor,
    *, label: str = "", capability: int = 90, processors: int = 132,
) -> Launch:  # fmt: skip
    """out = x + v @ fold[n]^T + bias and y = the expansion of `out`; x, v, out (N, H, W, C), y (N, H, W, M).

    `out` may be `x`, but see `shared`.
    """
    n, channels, rows = x.shape[0], x.shape[-1], w.shape[0]
    pixels = x.numel() // (n * channels)
    tile = tiles(channels, rows, n * pixels, capability, processors, True)
    warps, stages = tile.pop("warps"), tile.pop("stages")
    k1, k2 = halves(channels)
    constants = {"C": channels, "K1": k1, "K2": k2, "M": rows, **tile, "PRECISION": precision(x.dtype)}
    return Launch(
        _apply_norm_expand,
        {"x": x, "v": v, "fold": fold, "bias": bias, "out": out, "w": w, "affine": affine, "y": y},
        {"P": pixels},
        constants,
        (divide(rows, tile["COLUMNS"]) * divide(pixels, tile["BM"]), n),
        warps,
        stages,
        flops=2 * n * pixels * channels * (rows + channels),
        moved=x.dtype.itemsize
        * (n * pixels * (3 * channels + rows) + channels * rows + n * channels * channels),
        label=label,
    )
