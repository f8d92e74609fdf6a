"""The second half of the gated feed-forward network in Triton: hidden channels in chunks, never stored."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.common import depthwise_pair, divide, gelu, halves, power, precision, product
from restort.kernels.launch import Launch

Tensor = Any


@triton.jit
def _finish(acc, bias, x, y, pixel, valid, first, C: tl.constexpr, BN: tl.constexpr):
    n = first + tl.arange(0, BN)
    mask = valid[:, None] & (n < C)[None, :]
    at = pixel[:, None] * C + n[None, :]
    acc += tl.load(bias + n, mask=n < C, other=0.0)[None, :]
    acc += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["H", "W"])
def _gate_project(
    expanded, dw, w, bias, x, y, H, W,
    C: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, F: tl.constexpr, BF: tl.constexpr,
    PAIRS: tl.constexpr, TW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    across = (W + TW - 1) // TW
    top, left = t // across * (2 * PAIRS), t % across * TW
    first = n.to(tl.int64) * H * W + top * W + left
    p = tl.arange(0, PAIRS * TW)
    row, column = top + p // TW * 2, left + p % TW
    at = expanded + first * (2 * F) + (p // TW * 2 * W + p % TW)[:, None] * (2 * F)
    acc1 = tl.zeros([2 * PAIRS * TW, C1], tl.float32)
    acc2 = tl.zeros([2 * PAIRS * TW, C2 if C2 > 0 else 16], tl.float32)
    c1 = tl.arange(0, C1)
    for f in range(0, F, BF):
        channel = f + tl.arange(0, BF)
        keep = channel < F
        gate, gate_below = depthwise_pair(
            at + channel[None, :], dw, row, column, channel, keep, H, W, 2 * F, 2 * F
        )
        gate, gate_below = gelu(gate), gelu(gate_below)
        value, value_below = depthwise_pair(
            at + F + channel[None, :], dw, row, column, F + channel, keep, H, W, 2 * F, 2 * F
        )
        upper = (gate * value).to(w.dtype.element_ty)
        lower = (gate_below * value_below).to(w.dtype.element_ty)
        gated = tl.reshape(tl.permute(tl.join(upper, lower), [2, 0, 1]), [2 * PAIRS * TW, BF])
        w1 = tl.load(
            w + channel[:, None] * C + c1[None, :], mask=keep[:, None] & (c1 < C)[None, :], other=0.0
        )
        acc1 = product(gated, w1, acc1, PRECISION)
        if C2 > 0:
            c2 = C1 + tl.arange(0, C2)
            w2 = tl.load(
                w + channel[:, None] * C + c2[None, :], mask=keep[:, None] & (c2 < C)[None, :], other=0.0
            )
            acc2 = product(gated, w2, acc2, PRECISION)
    # rows of the product: the upper pixels of all pairs, then the lower ones
    p = tl.arange(0, 2 * PAIRS * TW)
    row = p % (PAIRS * TW) // TW * 2 + p // (PAIRS * TW)
    valid = (top + row < H) & (left + p % TW < W)
    pixel = first + row * W + p % TW
    _finish(acc1, bias, x, y, pixel, valid, 0, C, C1)
    if C2 > 0:
        _finish(acc2, bias, x, y, pixel, valid, C1, C, C2)


@triton.jit(do_not_specialize=["H", "W"])
def _gate(
    expanded, dw, y, H, W,
    F: tl.constexpr, BF: tl.constexpr, PAIRS: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    SHARES: tl.constexpr = (F + BF - 1) // BF
    t, n = tl.program_id(0) // SHARES, tl.program_id(1)
    across = (W + TW - 1) // TW
    top, left = t // across * (2 * PAIRS), t % across * TW
    first = n.to(tl.int64) * H * W + top * W + left
    p = tl.arange(0, PAIRS * TW)
    row, column = top + p // TW * 2, left + p % TW
    inner = (p // TW * 2 * W + p % TW)[:, None]
    channel = tl.program_id(0) % SHARES * BF + tl.arange(0, BF)
    keep = channel < F
    at = expanded + first * (2 * F) + inner * (2 * F) + channel[None, :]
    gate, gate_below = depthwise_pair(at, dw, row, column, channel, keep, H, W, 2 * F, 2 * F)
    gate, gate_below = gelu(gate), gelu(gate_below)
    value, value_below = depthwise_pair(at + F, dw, row, column, F + channel, keep, H, W, 2 * F, 2 * F)
    to = y + first * F + inner * F + channel[None, :]
    mask = ((row < H) & (column < W))[:, None] & keep[None, :]
    tl.store(to, (gate * value).to(y.dtype.element_ty), mask=mask)
    mask = ((row + 1 < H) & (column < W))[:, None] & keep[None, :]
    tl.store(to + W * F, (gate_below * value_below).to(y.dtype.element_ty), mask=mask)


def tiles(channels: int, pixels: int, processors: int = 132) -> dict[str, int]:
    """Pairs of rows and width of a tile of pixels, hidden channels a step, and warps."""
    if channels > 96 and pixels < 64 * 4 * processors:
        return {"PAIRS": 1, "TW": 16, "BF": 64, "warps": 8 if channels > 192 else 4}
    if channels > 96:
        return {"PAIRS": 2, "TW": 16, "BF": 64, "warps": 8}
    return {"PAIRS": 2, "TW": 16, "BF": 32, "warps": 4}


def apart(channels: int, pixels: int, processors: int = 132) -> bool:
    """Whether `launch_gate` and a 1x1 convolution are better: where so few programs would each read all of w."""
    return channels > 96 and pixels < 64 * 2 * processors


def launch_gate(expanded: Tensor, dw: Tensor, y: Tensor, *, label: str = "") -> Launch:
    """Only the gating: y (N, H, W, FP) = gelu(gate) * value."""
    n, h, wide, hidden = y.shape
    pairs, width, chunk = 1, 16, min(64, power(hidden))
    pixels = n * h * wide
    return Launch(
        _gate,
        {"expanded": expanded, "dw": dw, "y": y},
        {"H": h, "W": wide},
        {"F": hidden, "BF": chunk, "PAIRS": pairs, "TW": width},
        (divide(h, 2 * pairs) * divide(wide, width) * divide(hidden, chunk), n),
        4,
        1,
        flops=pixels * hidden * 2 * 18,
        moved=y.dtype.itemsize * pixels * 3 * hidden,
        label=label,
    )


def launch(
    expanded: Tensor,
    dw: Tensor,
    w: Tensor,
    bias: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    label: str = "",
    processors: int = 132,
) -> Launch:
    """y (N, H, W, C): see the reference."""
    n, h, wide, channels = x.shape
    hidden = w.shape[0]
    tile = tiles(channels, n * h * wide, processors)
    warps = tile.pop("warps")
    c1, c2 = halves(channels)
    pixels = n * h * wide
    return Launch(
        _gate_project,
        {"expanded": expanded, "dw": dw, "w": w, "bias": bias, "x": x, "y": y},
        {"H": h, "W": wide},
        {"C": channels, "C1": c1, "C2": c2, "F": hidden, **tile, "PRECISION": precision(x.dtype)},
        (divide(h, 2 * tile["PAIRS"]) * divide(wide, tile["TW"]), n),
        warps,
        1,
        flops=pixels * hidden * (2 * channels + 2 * 18),
        moved=x.dtype.itemsize * (pixels * 2 * (hidden + channels) + hidden * channels),
        label=label,
    )
