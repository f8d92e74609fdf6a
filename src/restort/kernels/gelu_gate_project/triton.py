"""The kernels in Triton; hidden channels come in chunks and are not stored."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, triton_launch
from restort.kernels.triton_helpers import depthwise_pair, dot, dot_precision, gelu
from restort.utils.integers import cdiv, next_power_of_2, two_powers_of_2

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
def gelu_gate_project_kernel(
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
        acc1 = dot(gated, w1, acc1, PRECISION)
        if C2 > 0:
            c2 = C1 + tl.arange(0, C2)
            w2 = tl.load(
                w + channel[:, None] * C + c2[None, :], mask=keep[:, None] & (c2 < C)[None, :], other=0.0
            )
            acc2 = dot(gated, w2, acc2, PRECISION)
    # rows of the product: the upper pixels of all pairs, then the lower ones
    p = tl.arange(0, 2 * PAIRS * TW)
    row = p % (PAIRS * TW) // TW * 2 + p // (PAIRS * TW)
    valid = (top + row < H) & (left + p % TW < W)
    pixel = first + row * W + p % TW
    _finish(acc1, bias, x, y, pixel, valid, 0, C, C1)
    if C2 > 0:
        _finish(acc2, bias, x, y, pixel, valid, C1, C, C2)


@triton.jit(do_not_specialize=["H", "W"])
def gelu_gate_kernel(
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


def tiling(channels: int, pixels: int, num_sms: int = 132) -> dict[str, int]:
    """Return PAIRS of rows and width TW of a tile of pixels, BF hidden channels a step, and warps."""
    if channels > 96 and pixels < 64 * 4 * num_sms:
        return {"PAIRS": 1, "TW": 16, "BF": 64, "warps": 8 if channels > 192 else 4}
    if channels > 96:
        return {"PAIRS": 2, "TW": 16, "BF": 64, "warps": 8}
    return {"PAIRS": 2, "TW": 16, "BF": 32, "warps": 4}


def apart(channels: int, pixels: int, num_sms: int = 132) -> bool:
    """Return whether `launch_gate` and a conv1x1 are better: where so few programs would each read all of w."""
    return channels > 96 and pixels < 64 * 2 * num_sms


def launch_gate(expanded: Tensor, dw: Tensor, y: Tensor, *, label: str = "") -> Launch:
    """Return a launch of the gating alone: y (N, H, W, FP) = gelu(gate) * value."""
    n, h, width, hidden = y.shape
    pairs, tile_w, chunk = 1, 16, min(64, next_power_of_2(hidden))
    pixels = n * h * width
    return Launch(
        gelu_gate_kernel,
        {"expanded": expanded, "dw": dw, "y": y},
        {"H": h, "W": width},
        {"F": hidden, "BF": chunk, "PAIRS": pairs, "TW": tile_w},
        (cdiv(h, 2 * pairs) * cdiv(width, tile_w) * cdiv(hidden, chunk), n),
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
    num_sms: int = 132,
) -> Launch:
    """Return a launch; reference.gelu_gate_project has the formula of y (N, H, W, C)."""
    n, h, width, channels = x.shape
    hidden = w.shape[0]
    chosen = tiling(channels, n * h * width, num_sms)
    c1, c2 = two_powers_of_2(channels)
    pixels = n * h * width
    return triton_launch(
        gelu_gate_project_kernel,
        {"expanded": expanded, "dw": dw, "w": w, "bias": bias, "x": x, "y": y},
        {"H": h, "W": width},
        {"C": channels, "C1": c1, "C2": c2, "F": hidden, **chosen, "PRECISION": dot_precision(x.dtype)},
        (cdiv(h, 2 * chosen["PAIRS"]) * cdiv(width, chosen["TW"]), n),
        flops=pixels * hidden * (2 * channels + 2 * 18),
        moved=x.dtype.itemsize * (pixels * 2 * (hidden + channels) + hidden * channels),
        label=label,
    )
