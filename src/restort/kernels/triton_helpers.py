"""Device functions that several Triton kernels share: products, GELU and the depthwise 3x3 convolution."""

from __future__ import annotations

import os
from typing import Any

import triton
import triton.language as tl


def dot_precision(dtype: Any) -> str:
    """Return the PRECISION of `dot` for operands of this type: tensor cores for 16 bits, exact products for float32.

    'float32' is for Triton's CPU interpreter, which multiplies the bits of bfloat16 as integers.
    """
    if "bfloat16" in str(dtype) and os.environ.get("TRITON_INTERPRET") == "1":
        return "float32"
    return "ieee" if dtype.itemsize == 4 else "tf32"


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32; PRECISION from `dot_precision`."""
    if PRECISION == "float32":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def gelu(x):
    """x * Phi(x) = max(x, 0) - |x| erfc(z) / 2 with z = |x| / sqrt(2), relative error at most 1e-6.

    erfc(z) is (1 + a1 z + ... + a6 z^6)^-16 by Abramowitz and Stegun 7.1.28 (error below 3e-7). The coefficients are
    those of |x|, and all are times 2^(1/16), which is the half.
    """
    z = tl.abs(x)
    p = 5.6212997e-06 * z + 5.1055209e-05
    p = p * z + 3.9686137e-05
    p = p * z + 3.4227392e-03
    p = p * z + 2.2076998e-02
    p = p * z + 5.2075163e-02
    r = tl.rsqrt(p * z + 1.04427378)
    r = r * r
    r = r * r
    r = r * r
    r = r * r
    r = r * r
    return tl.maximum(x, 0.0) - z * r


@triton.jit
def depthwise_pair(x, dw, row, column, channel, keep, H, W, LD: tl.constexpr, ROW: tl.constexpr):
    """Zero-padded depthwise 3x3 at some pixels and at those below them, two arrays [pixels, channels] in float32.

    x         pointers [pixels, channels] to the upper pixels in (H, W, LD); dw [10, ROW] pointer to taps and bias
    row, column   [pixels];   channel, keep   [channels], the channel's place in dw and whether it exists

    Two rows at once share half of their loads. Pixels outside of the image get undefined values.
    """
    # A value that is neither loaded nor constant keeps Triton from computing all of this in the layout of a product's
    # operand, which would be once for each product and without vectors.
    bias = tl.where(keep, tl.load(dw + 9 * ROW + channel, mask=keep, other=0.0), 0.0)
    upper = tl.broadcast_to(bias[None, :], x.shape)
    lower = upper
    for i in tl.static_range(12):
        tap_row = row + (i // 3 - 1)
        tap_column = column + (i % 3 - 1)
        inside = (tap_row >= 0) & (tap_row < H) & (tap_column >= 0) & (tap_column < W)
        at = x + ((i // 3 - 1) * W * LD + (i % 3 - 1) * LD)
        here = tl.load(at, mask=inside[:, None] & keep[None, :], other=0.0).to(tl.float32)
        if i < 9:
            upper += here * tl.load(dw + i * ROW + channel, mask=keep, other=0.0)[None, :]
        if i >= 3:
            lower += here * tl.load(dw + (i - 3) * ROW + channel, mask=keep, other=0.0)[None, :]
    return upper, lower
