"""Depthwise 3x3 and Gram matrix in Triton: a program takes every splits-th tile of pixels of one head."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.common import depthwise, divide, power, precision, product
from restort.kernels.launch import Launch

Tensor = Any


@triton.jit(do_not_specialize=["H", "W", "splits"])
def _depthwise_gram(
    qkv, dw, v, sums, H, W, splits,
    C: tl.constexpr, HEADS: tl.constexpr, CH: tl.constexpr, CHP: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, split, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    across = (W + TW - 1) // TW
    tiles = across * ((H + TH - 1) // TH)
    image = n.to(tl.int64) * H * W
    p = tl.arange(0, TH * TW)
    i = tl.arange(0, CHP)
    keep = i < CH
    gram = tl.zeros([CHP, CHP], tl.float32)
    norm_q = tl.zeros([CHP], tl.float32)
    norm_k = tl.zeros([CHP], tl.float32)
    for t in range(split, tiles, splits):
        top, left = t // across * TH, t % across * TW
        row, column = top + p // TW, left + p % TW
        valid = (row < H) & (column < W)
        base = qkv + (image + top * W + left) * (3 * C)
        inner = (p // TW * W + p % TW)[:, None]
        at = base + inner * (3 * C) + (head * CH + i)[None, :]
        q = depthwise(at, dw, row, column, head * CH + i, valid, keep, H, W, 3 * C, 3 * C)
        # pixels outside of the picture would bring the bias
        q = tl.where(valid[:, None], q, 0.0).to(v.dtype.element_ty)
        k = depthwise(at + C, dw, row, column, C + head * CH + i, valid, keep, H, W, 3 * C, 3 * C)
        k = tl.where(valid[:, None], k, 0.0).to(v.dtype.element_ty)
        gram = product(tl.trans(q), k, gram, PRECISION)
        q = q.to(tl.float32)
        k = k.to(tl.float32)
        norm_q += tl.sum(q * q, 0)
        norm_k += tl.sum(k * k, 0)
        value = depthwise(at + 2 * C, dw, row, column, 2 * C + head * CH + i, valid, keep, H, W, 3 * C, 3 * C)
        to = v + (image + top * W + left) * C + inner * C + (head * CH + i)[None, :]
        tl.store(to, value.to(v.dtype.element_ty), mask=valid[:, None] & keep[None, :])
    images = tl.num_programs(2)
    out = sums + ((split * images + n) * HEADS + head).to(tl.int64) * (CH * (CH + 2))
    tl.store(out + i[:, None] * CH + i[None, :], gram, mask=keep[:, None] & keep[None, :])
    tl.store(out + CH * CH + i, norm_q, mask=keep)
    tl.store(out + CH * CH + CH + i, norm_k, mask=keep)


def tiles(ch: int) -> tuple[int, int, int]:
    """Height and width of a tile of pixels, and warps, for so many channels of a head."""
    return (4, 8, 8) if power(ch) > 64 else (4, 16, 4)


def splits(n: int, h: int, w: int, channels: int, heads: int, processors: int = 132) -> int:
    """How many programs share a head's pixels, which is how many partial sums there are."""
    th, tw, warps = tiles(channels // heads)
    wanted = divide(2 * processors * (4 if warps == 4 else 2) // 2, n * heads)
    return max(1, min(wanted, divide(h, th) * divide(w, tw)))


def sums_shape(n: int, heads: int, channels: int, splits: int) -> tuple[int, int, int, int]:
    """Of the buffer of partial sums, float32."""
    ch = channels // heads
    return splits, n, heads, ch * (ch + 2)


def launch(
    qkv: Tensor, dw: Tensor, v: Tensor, sums: Tensor, *, label: str = "", capability: int = 90
) -> Launch:
    """v (N, H, W, C) and partial sums (splits, N, heads, ch * (ch + 2)) float32 from qkv (N, H, W, 3 C)."""
    n, h, w, channels = v.shape
    heads = sums.shape[2]
    ch = channels // heads
    th, tw, warps = tiles(ch)
    constants = {"C": channels, "HEADS": heads, "CH": ch, "CHP": power(ch), "TH": th, "TW": tw}
    return Launch(
        _depthwise_gram,
        {"qkv": qkv, "dw": dw, "v": v, "sums": sums},
        {"H": h, "W": w, "splits": sums.shape[0]},
        {**constants, "PRECISION": precision(v.dtype)},
        (heads, sums.shape[0], n),
        warps,
        1,
        flops=n * h * w * channels * (2 * 27 + 2 * ch),
        moved=v.dtype.itemsize * n * h * w * 4 * channels + 4 * sums.numel(),
        label=label,
    )
