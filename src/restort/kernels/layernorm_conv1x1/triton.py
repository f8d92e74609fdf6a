"""The kernels in Triton.

A program keeps the raw channels of its pixels and runs over the rows of w, so x is read once; the normalisation is
applied to the product (rstd * (acc - mean * sums) + shift). With `apply` it first adds the attention's contribution
to x, stores that, and goes on with it.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, triton_launch
from restort.kernels.triton_helpers import dot, dot_precision
from restort.utils.integers import cdiv, two_powers_of_2

Tensor = Any


@triton.jit
def _statistics(x1, x2, C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr):
    """Mean and 1 / sqrt(var + 1e-5) of each row of [x1 | x2], which is zero beyond C; two passes."""
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
        acc = dot(x1, tl.trans(w1), tl.zeros([x1.shape[0], BN], tl.float32), PRECISION)
        if K2 > 0:
            k2 = K1 + tl.arange(0, K2)
            w2 = tl.load(
                w + n[:, None] * C + k2[None, :], mask=inside[:, None] & (k2 < C)[None, :], other=0.0
            )
            acc = dot(x2, tl.trans(w2), acc, PRECISION)
        sums = tl.load(affine + n, mask=inside, other=0.0)
        shift = tl.load(affine + M + n, mask=inside, other=0.0)
        acc = scale[:, None] * (acc - mean[:, None] * sums[None, :]) + shift[None, :]
        tl.store(
            y + pixel[:, None] * M + n[None, :],
            acc.to(y.dtype.element_ty),
            mask=valid[:, None] & inside[None, :],
        )


@triton.jit(do_not_specialize=["P"])
def layernorm_conv1x1_kernel(
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
    x, v1, v2, attention, bias, out, pixel, valid, kept, first,
    C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store and return channels first .. first + BN of x + v @ attention^T + bias."""
    n = first + tl.arange(0, BN)
    inside = n < C
    k1 = tl.arange(0, K1)
    m1 = tl.load(
        attention + n[:, None] * C + k1[None, :], mask=inside[:, None] & (k1 < C)[None, :], other=0.0
    )
    acc = dot(v1, tl.trans(m1), tl.zeros([v1.shape[0], BN], tl.float32), PRECISION)
    if K2 > 0:
        k2 = K1 + tl.arange(0, K2)
        m2 = tl.load(
            attention + n[:, None] * C + k2[None, :], mask=inside[:, None] & (k2 < C)[None, :], other=0.0
        )
        acc = dot(v2, tl.trans(m2), acc, PRECISION)
    at = pixel[:, None] * C + n[None, :]
    mask = valid[:, None] & inside[None, :]
    acc += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    acc += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    acc = acc.to(out.dtype.element_ty)
    tl.store(out + at, acc, mask=kept[:, None] & inside[None, :])
    return acc


@triton.jit(do_not_specialize=["P"])
def apply_layernorm_conv1x1_kernel(
    x, v, attention, bias, out, w, affine, y, P,
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
    attention += n * C * C
    kept = offset < tl.where(share == 0, P, 0)
    x1 = _applied(x, v1, v2, attention, bias, out, pixel, valid, kept, 0, C, K1, K2, K1, PRECISION)
    x2 = x1
    if K2 > 0:
        x2 = _applied(x, v1, v2, attention, bias, out, pixel, valid, kept, K1, C, K1, K2, K2, PRECISION)
    mean, scale = _statistics(x1, x2, C, K1, K2)
    _expand(
        x1, x2, mean, scale, w, affine, y, pixel, valid, share * COLUMNS,
        C, K1, K2, M, BN, COLUMNS, PRECISION,
    )  # fmt: skip


def tiling(
    channels: int, rows: int, pixels: int, capability: int = 90, num_sms: int = 132, attends: bool = False
) -> dict[str, int]:
    """Return BM pixels and BN columns of a step, COLUMNS of a program, warps and stages.

    Where pixels alone do not fill the GPU, the columns are shared out too; fewer of them if each program has to apply
    the attention first.
    """
    small = capability not in (80, 90, 100)  # 99 KB of shared memory
    bm = 64 if channels > 96 or pixels <= 64 * 4 * num_sms else 128
    bn = 64 if rows % 64 == 0 and not (channels > 192 and small) else 32
    warps = 8 if channels > 192 else 4
    if channels > 96 and capability in (90, 100) and not attends:  # benchmarks/tune_kernels.py on an H100
        if pixels <= 64 * 64:
            bn, warps = (128 if rows % 64 == 0 else bn), 4
        elif channels > 192:
            bm = 128
    programs = cdiv(pixels, bm)
    steps = cdiv(rows, bn)
    share = steps
    while share > 1 and programs * cdiv(steps, share) < (1 if attends else 2) * num_sms:
        share = cdiv(share, 2)
    stages = min(share, 2 if channels > 96 or small else 3)
    if channels > 192 and bn == 128:  # two of them would be 250 KB
        stages = 1
    return {"BM": bm, "BN": bn, "COLUMNS": share * bn, "warps": warps, "stages": stages}


def launch(
    x: Tensor, w: Tensor, affine: Tensor, y: Tensor,
    *, label: str = "", capability: int = 90, num_sms: int = 132,
) -> Launch:  # fmt: skip
    """Return a launch; reference.layernorm_conv1x1 has the formula of y (..., M) from x (..., C)."""
    channels, rows = x.shape[-1], w.shape[0]
    pixels = x.numel() // channels
    chosen = tiling(channels, rows, pixels, capability, num_sms)
    k1, k2 = two_powers_of_2(channels)
    constants = {"C": channels, "K1": k1, "K2": k2, "M": rows, **chosen, "PRECISION": dot_precision(x.dtype)}
    return triton_launch(
        layernorm_conv1x1_kernel,
        {"x": x, "w": w, "affine": affine, "y": y},
        {"P": pixels},
        constants,
        (cdiv(rows, chosen["COLUMNS"]) * cdiv(pixels, chosen["BM"]),),
        flops=2 * pixels * channels * rows,
        moved=x.dtype.itemsize * (pixels * (channels + rows) + channels * rows),
        label=label,
    )


def shared(n: int, pixels: int, channels: int, rows: int, capability: int = 90, num_sms: int = 132) -> bool:
    """Return whether several programs of `launch_apply` read the same pixels, so that `out` must not be `x`."""
    return tiling(channels, rows, n * pixels, capability, num_sms, True)["COLUMNS"] < rows


def launch_apply(
    x: Tensor, v: Tensor, attention: Tensor, bias: Tensor, out: Tensor, w: Tensor, affine: Tensor, y: Tensor,
    *, label: str = "", capability: int = 90, num_sms: int = 132,
) -> Launch:  # fmt: skip
    """Return a launch: out = x + v @ attention[n]^T + bias and y = the expansion of `out`.

    x, v, out (N, H, W, C), y (N, H, W, M).     `out` may be `x`, but see `shared`.
    """
    n, channels, rows = x.shape[0], x.shape[-1], w.shape[0]
    pixels = x.numel() // (n * channels)
    chosen = tiling(channels, rows, n * pixels, capability, num_sms, True)
    k1, k2 = two_powers_of_2(channels)
    constants = {"C": channels, "K1": k1, "K2": k2, "M": rows, **chosen, "PRECISION": dot_precision(x.dtype)}
    return triton_launch(
        apply_layernorm_conv1x1_kernel,
        {"x": x, "v": v, "attention": attention, "bias": bias, "out": out, "w": w, "affine": affine, "y": y},
        {"P": pixels},
        constants,
        (cdiv(rows, chosen["COLUMNS"]) * cdiv(pixels, chosen["BM"]), n),
        flops=2 * n * pixels * channels * (rows + channels),
        moved=x.dtype.itemsize
        * (n * pixels * (3 * channels + rows) + channels * rows + n * channels * channels),
        label=label,
    )
