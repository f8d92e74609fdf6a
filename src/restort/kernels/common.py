"""What several kernels share: tile arithmetic on the host, GELU and the depthwise 3x3 convolution on the device."""

from __future__ import annotations

import os
from typing import Any

import triton
import triton.language as tl


def power(number: int, least: int = 16) -> int:
    """The next power of two, at least `least`: Triton's tiles have such sides, those of products at least 16."""
    return max(least, 1 << (number - 1).bit_length())


def halves(channels: int) -> tuple[int, int]:
    """Two sides of tiles that cover `channels`: 48 as 32 + 16, 96 as 64 + 32, 64 as 64 + 0.

    Channel counts here are 3 * 2^n; one tile of the next power of two would waste a quarter of its work.
    """
    whole = power(channels)
    first = whole // 2
    if whole == 16 or first + power(channels - first) >= whole:
        return whole, 0
    return first, power(channels - first)


def divide(number: int, divisor: int) -> int:
    """Rounded up."""
    return -(-number // divisor)


def precision(dtype: Any) -> str:
    """How `product` multiplies arrays of this type: 16-bit ones in the matrix units, float32 ones exactly.

    'wide' is for Triton's CPU interpreter, which takes the bits of bfloat16 for integers.
    """
    if "bfloat16" in str(dtype) and os.environ.get("TRITON_INTERPRET") == "1":
        return "wide"
    return "ieee" if dtype.itemsize == 4 else "tf32"


def roofs(name: str) -> tuple[float, float]:
    """Bytes and 16-bit floating-point operations a second that a GPU of this name reaches."""
    return (4.2e12, 7.0e14) if "H200" in name else (3.0e12, 7.0e14)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32; PRECISION from `precision`."""
    if PRECISION == "wide":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def gelu(x):
    """x * Phi(x) = max(x, 0) - |x| erfc(z) / 2 with z = |x| / sqrt(2), to 1e-6 of it at most.

    erfc(z) is (1 + a1 z + ... + a6 z^6)^-16 by Abramowitz and Stegun 7.1.28 (error below 3e-7); the coefficients are
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

    Two rows at once share half of their loads. What lies outside of the picture comes out as anything.
    """
    # A value that is neither loaded nor constant keeps Triton from computing all of this in the layout of a product's
    # operand, which would be once for each product and without vectors.
    bias = tl.where(keep, tl.load(dw + 9 * ROW + channel, mask=keep, other=0.0), 0.0)
    upper = tl.broadcast_to(bias[None, :], x.shape)
    lower = upper
    for i in tl.static_range(12):
        there = row + (i // 3 - 1)
        aside = column + (i % 3 - 1)
        inside = (there >= 0) & (there < H) & (aside >= 0) & (aside < W)
        at = x + ((i // 3 - 1) * W * LD + (i % 3 - 1) * LD)
        here = tl.load(at, mask=inside[:, None] & keep[None, :], other=0.0).to(tl.float32)
        if i < 9:
            upper += here * tl.load(dw + i * ROW + channel, mask=keep, other=0.0)[None, :]
        if i >= 3:
            lower += here * tl.load(dw + (i - 3) * ROW + channel, mask=keep, other=0.0)[None, :]
    return upper, lower
