"""The second half of the gated feed-forward network in Triton: hidden channels in chunks, never stored."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.common import depthwise, divide, gelu, halves, precision, product
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
    TH: tl.constexpr, TW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    across = (W + TW - 1) // TW
    top, left = t // across * TH, t % across * TW
    p = tl.arange(0, TH * TW)
    row, column = top + p // TW, left + p % TW
    valid = (row < H) & (column < W)
    first = n.to(tl.int64) * H * W + top * W + left
    inner = p // TW * W + p % TW
    at = expanded + first * (2 * F) + inner[:, None] * (2 * F)
    acc1 = tl.zeros([TH * TW, C1], tl.float32)
    acc2 = tl.zeros([TH * TW, C2 if C2 > 0 else 16], tl.float32)
    c1 = tl.arange(0, C1)
    for f in range(0, F, BF):
        channel = f + tl.arange(0, BF)
        keep = channel < F
        gate = depthwise(at + channel[None, :], dw, row, column, channel, valid, keep, H, W, 2 * F, 2 * F)
        value = depthwise(
            at + F + channel[None, :], dw, row, column, F + channel, valid, keep, H, W, 2 * F, 2 * F
        )
        gated = (gelu(gate) * value).to(w.dtype.element_ty)
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
    pixel = first + inner
    _finish(acc1, bias, x, y, pixel, valid, 0, C, C1)
    if C2 > 0:
        _finish(acc2, bias, x, y, pixel, valid, C1, C, C2)


def tiles(channels: int, pixels: int, processors: int = 132) -> dict[str, int]:
    """Height and width of a tile of pixels, hidden channels a step, and warps."""
    if pixels < 32 * processors and channels > 96:
        return {"TH": 2, "TW": 8, "BF": 64, "warps": 4}
    if pixels < 64 * 2 * processors and channels > 96:
        return {"TH": 4, "TW": 8, "BF": 64, "warps": 8 if channels > 192 else 4}
    return {"TH": 4, "TW": 16, "BF": 32, "warps": 8 if channels > 192 else 4}


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
        (divide(h, tile["TH"]) * divide(wide, tile["TW"]), n),
        warps,
        1,
        flops=pixels * hidden * (2 * channels + 2 * 18),
        moved=x.dtype.itemsize * (pixels * 2 * (hidden + channels) + hidden * channels),
        label=label,
    )
