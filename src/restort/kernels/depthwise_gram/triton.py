"""The kernel in Triton: a program takes every splits-th tile of pixels of one head."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, triton_launch
from restort.kernels.triton_helpers import depthwise_pair, dot, dot_precision
from restort.utils.integers import cdiv, next_power_of_2

Tensor = Any


@triton.jit(do_not_specialize=["H", "W", "splits"])
def depthwise_gram_kernel(
    qkv, dw, v, sums, H, W, splits,
    C: tl.constexpr, HEADS: tl.constexpr, CH: tl.constexpr, CHP: tl.constexpr,
    PAIRS: tl.constexpr, TW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, split, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    across = (W + TW - 1) // TW
    tiles = across * ((H + 2 * PAIRS - 1) // (2 * PAIRS))
    image = n.to(tl.int64) * H * W
    p = tl.arange(0, PAIRS * TW)
    i = tl.arange(0, CHP)
    keep = i < CH
    i += head * CH
    gram = tl.zeros([CHP, CHP], tl.float32)
    norm_q = tl.zeros([CHP], tl.float32)
    norm_k = tl.zeros([CHP], tl.float32)
    for t in range(split, tiles, splits):
        top, left = t // across * (2 * PAIRS), t % across * TW
        first = image + top * W + left
        inner = (p // TW * 2 * W + p % TW)[:, None]
        row, column = top + p // TW * 2, left + p % TW
        at = qkv + first * (3 * C) + inner * (3 * C) + i[None, :]
        # pixels outside of the image do not count
        upper = (row < H) & (column < W)
        lower = (row + 1 < H) & (column < W)
        q, q_below = depthwise_pair(at, dw, row, column, i, keep, H, W, 3 * C, 3 * C)
        q = tl.where(upper[:, None], q, 0.0).to(v.dtype.element_ty)
        q_below = tl.where(lower[:, None], q_below, 0.0).to(v.dtype.element_ty)
        k, k_below = depthwise_pair(at + C, dw, row, column, C + i, keep, H, W, 3 * C, 3 * C)
        k = tl.where(upper[:, None], k, 0.0).to(v.dtype.element_ty)
        k_below = tl.where(lower[:, None], k_below, 0.0).to(v.dtype.element_ty)
        gram = dot(tl.trans(q), k, gram, PRECISION)
        gram = dot(tl.trans(q_below), k_below, gram, PRECISION)
        q, q_below = q.to(tl.float32), q_below.to(tl.float32)
        k, k_below = k.to(tl.float32), k_below.to(tl.float32)
        norm_q += tl.sum(q * q + q_below * q_below, 0)
        norm_k += tl.sum(k * k + k_below * k_below, 0)
        value, value_below = depthwise_pair(at + 2 * C, dw, row, column, 2 * C + i, keep, H, W, 3 * C, 3 * C)
        to = v + first * C + inner * C + i[None, :]
        tl.store(to, value.to(v.dtype.element_ty), mask=upper[:, None] & keep[None, :])
        tl.store(to + W * C, value_below.to(v.dtype.element_ty), mask=lower[:, None] & keep[None, :])
    i = tl.arange(0, CHP)
    images = tl.num_programs(2)
    out = sums + ((split * images + n) * HEADS + head).to(tl.int64) * (CH * (CH + 2))
    tl.store(out + i[:, None] * CH + i[None, :], gram, mask=keep[:, None] & keep[None, :])
    tl.store(out + CH * CH + i, norm_q, mask=keep)
    tl.store(out + CH * CH + CH + i, norm_k, mask=keep)


def tiling(ch: int) -> dict[str, int]:
    """Return PAIRS of rows and width TW of a tile of pixels, and warps, for so many channels of a head."""
    many = next_power_of_2(ch) > 64
    return {"PAIRS": 1 if many else 2, "TW": 16, "warps": 8 if many else 4}


def splits(n: int, h: int, w: int, channels: int, heads: int, num_sms: int = 132) -> int:
    """Return how many programs share a head's pixels, which is the number of partial sums."""
    chosen = tiling(channels // heads)
    wanted = cdiv(num_sms * (3 if chosen["warps"] == 4 else 2), n * heads)
    return max(1, min(wanted, cdiv(h, 2 * chosen["PAIRS"]) * cdiv(w, chosen["TW"])))


def sums_shape(n: int, heads: int, channels: int, splits: int) -> tuple[int, int, int, int]:
    """Return the shape of the buffer of partial sums, float32."""
    ch = channels // heads
    return splits, n, heads, ch * (ch + 2)


def launch(qkv: Tensor, dw: Tensor, v: Tensor, sums: Tensor, *, label: str = "") -> Launch:
    """Return a launch: v (N, H, W, C) and sums (splits, N, heads, ch * (ch + 2)) float32 from qkv (N, H, W, 3 C)."""
    n, h, w, channels = v.shape
    heads = sums.shape[2]
    ch = channels // heads
    constants = {"C": channels, "HEADS": heads, "CH": ch, "CHP": next_power_of_2(ch), **tiling(ch)}
    return triton_launch(
        depthwise_gram_kernel,
        {"qkv": qkv, "dw": dw, "v": v, "sums": sums},
        {"H": h, "W": w, "splits": sums.shape[0]},
        {**constants, "PRECISION": dot_precision(v.dtype)},
        (heads, sums.shape[0], n),
        flops=n * h * w * channels * (2 * 27 + 2 * ch),
        moved=v.dtype.itemsize * n * h * w * 4 * channels + 4 * sums.numel(),
        label=label,
    )
