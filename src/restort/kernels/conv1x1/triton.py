"""The kernel in Triton."""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, triton_launch
from restort.kernels.triton_helpers import dot, dot_precision
from restort.utils.integers import cdiv

Tensor = Any


@triton.jit
def _add(
    acc, source, w, pixel, valid, n, offset,
    K: tl.constexpr, LD: tl.constexpr, C: tl.constexpr, TRANSPOSED: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BK)
    for j in range(0, K, BK):
        keep = (j + k < K)[None, :]
        a = tl.load(source + pixel[:, None] * K + (j + k)[None, :], mask=valid[:, None] & keep, other=0.0)
        if TRANSPOSED:
            at = w + (offset + j + k)[:, None] * C + n[None, :]
            b = tl.load(at, mask=(j + k < K)[:, None] & (n < C)[None, :], other=0.0)
        else:
            at = w + n[:, None] * LD + (offset + j + k)[None, :]
            b = tl.trans(tl.load(at, mask=(n < C)[:, None] & keep, other=0.0))
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=["P"])
def conv1x1_kernel(
    a, b, w, bias, x, y, P,
    KA: tl.constexpr, KB: tl.constexpr, C: tl.constexpr, RESIDUAL: tl.constexpr, PER_IMAGE: tl.constexpr,
    TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    SHARES: tl.constexpr = (C + BN - 1) // BN
    image = tl.program_id(1)
    n = tl.program_id(0) % SHARES * BN + tl.arange(0, BN)
    offset = tl.program_id(0) // SHARES * BM + tl.arange(0, BM)
    valid = offset < P
    pixel = image.to(tl.int64) * P + offset
    if PER_IMAGE:
        w += image * (C * (KA + KB))
    acc = tl.zeros([BM, BN], tl.float32)
    acc = _add(acc, a, w, pixel, valid, n, 0, KA, KA + KB, C, TRANSPOSED, BK, PRECISION)
    if KB > 0:
        acc = _add(acc, b, w, pixel, valid, n, KA, KB, KA + KB, C, TRANSPOSED, BK, PRECISION)
    acc += tl.load(bias + n, mask=n < C, other=0.0)[None, :]
    at = pixel[:, None] * C + n[None, :]
    mask = valid[:, None] & (n < C)[None, :]
    if RESIDUAL:
        acc += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)


def tiling(sources: tuple[int, int], channels: int, pixels: int, num_sms: int = 132) -> dict[str, int]:
    """Return BM pixels, BN columns and BK inputs of a step, warps and stages."""
    bn = 64 if channels % 64 == 0 or channels > 64 else 32 if channels > 16 else 16
    bm = 64 if cdiv(pixels, 128) * cdiv(channels, bn) < 2 * num_sms else 128
    depth = math.gcd(*sources) if all(sources) else sources[0]
    bk = next((step for step in (64, 32) if depth % step == 0), 16)
    return {"BM": bm, "BN": bn, "BK": bk, "warps": 4, "stages": 4 if bk < 64 else 3}


def launch(
    a: Tensor,
    w: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    b: Tensor | None = None,
    x: Tensor | None = None,
    transposed: bool = False,
    label: str = "",
    num_sms: int = 132,
) -> Launch:
    """Return a launch: y (N, H, W, C) = cat(a, b) @ w^T + bias (+ x). `transposed`: w is (K, C)."""
    n, ka, channels = a.shape[0], a.shape[-1], y.shape[-1]
    kb = 0 if b is None else b.shape[-1]
    per_image = w.ndim == 3
    pixels = a.numel() // ka
    chosen = tiling((ka, kb), channels, pixels, num_sms)
    images = n if per_image else 1
    size = a.dtype.itemsize
    return triton_launch(
        conv1x1_kernel,
        {"a": a, "b": a if b is None else b, "w": w, "bias": bias, "x": y if x is None else x, "y": y},
        {"P": pixels // images},
        {
            "KA": ka,
            "KB": kb,
            "C": channels,
            "RESIDUAL": x is not None,
            "PER_IMAGE": per_image,
            "TRANSPOSED": transposed,
            **chosen,
            "PRECISION": dot_precision(a.dtype),
        },
        (cdiv(channels, chosen["BN"]) * cdiv(pixels // images, chosen["BM"]), images),
        flops=2 * pixels * (ka + kb) * channels,
        moved=size * (pixels * (ka + kb + channels * (1 if x is None else 2)) + w.numel()),
        label=label,
    )
