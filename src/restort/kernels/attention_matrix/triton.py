"""The kernel in Triton. Partial sums are added in a fixed order, so results do not vary."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch
from restort.utils.integers import cdiv, next_power_of_2

Tensor = Any

FEW = 16  # partial sums that `attention_matrix_kernel` adds; `sum_partials_kernel`, with more programs, adds more first
WIDTH, ROWS = (
    32,
    256,
)  # numbers, and partial sums of each, that a program of `sum_partials_kernel` asks for at once


@triton.jit(do_not_specialize=["n", "splits"])
def sum_partials_kernel(
    sums, total, n, splits, LENGTH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    length = n * LENGTH
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, ROWS)[:, None]
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for s in range(0, splits, ROWS):
        mask = (s + row < splits) & (at < length)[None, :]
        acc += tl.load(sums + (s + row).to(tl.int64) * length + at[None, :], mask=mask, other=0.0)
    tl.store(total + at, tl.sum(acc, 0), mask=at < length)


@triton.jit(do_not_specialize=["splits"])
def attention_matrix_kernel(
    sums, temperature, w, out, splits,
    C: tl.constexpr, HEADS: tl.constexpr, CH: tl.constexpr, CHP: tl.constexpr, BM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, part, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = tl.arange(0, CHP)
    keep = i < CH
    square = keep[:, None] & keep[None, :]
    gram = tl.zeros([CHP, CHP], tl.float32)
    q = tl.zeros([CHP], tl.float32)
    k = tl.zeros([CHP], tl.float32)
    stride = tl.num_programs(2) * HEADS * (CH * (CH + 2))
    base = sums + (n * HEADS + head) * (CH * (CH + 2))
    for s in range(0, splits, 4):
        for j in tl.static_range(4):  # four at once, for what waits is the memory
            most = tl.where(s + j < splits, CH, 0)
            here = i < most
            gram += tl.load(
                base + i[:, None] * CH + i[None, :], mask=here[:, None] & keep[None, :], other=0.0
            )
            q += tl.load(base + CH * CH + i, mask=here, other=0.0)
            k += tl.load(base + CH * CH + CH + i, mask=here, other=0.0)
            base += stride
    heat = tl.load(temperature + head)
    q = heat / tl.maximum(tl.sqrt(q), 1e-12)
    k = 1.0 / tl.maximum(tl.sqrt(k), 1e-12)
    scores = tl.where(keep[None, :], gram * q[:, None] * k[None, :], float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = scores / tl.sum(scores, 1)[:, None]
    weights = tl.where(square, weights, 0.0)
    m = part * BM + tl.arange(0, BM)
    inside = (m < C)[:, None] & keep[None, :]
    at = m[:, None] * C + head * CH + i[None, :]
    rows = tl.load(w + at, mask=inside, other=0.0)
    product = tl.dot(rows, weights, input_precision=PRECISION)
    tl.store(out + n * C * C + at, product.to(out.dtype.element_ty), mask=inside)


def launches(
    sums: Tensor,
    total: Tensor | None,
    temperature: Tensor,
    w: Tensor,
    out: Tensor,
    *,
    label: str = "",
    capability: int = 90,
) -> list[Launch]:
    """Return the launches that make `out` (N, C, C).

    sums    (splits, N, heads, ch * (ch + 2)) float32
    total   (1, N, heads, ...) float32 if splits are more than FEW, else None
    """
    splits, n, heads, size = sums.shape
    channels = w.shape[0]
    ch = channels // heads
    steps = []
    if total is not None:
        steps.append(
            Launch(
                sum_partials_kernel,
                {"sums": sums, "total": total},
                {"n": n, "splits": splits},
                {"LENGTH": heads * size, "WIDTH": WIDTH, "ROWS": ROWS},
                (cdiv(n * heads * size, WIDTH),),
                8,
                1,
                moved=4 * (splits + 1) * n * heads * size,
                label=label,
            )
        )
        sums = total
    rows = 32
    small = capability not in (80, 90, 100) and next_power_of_2(ch) > 64  # 99 KB of shared memory
    steps.append(
        Launch(
            attention_matrix_kernel,
            {"sums": sums, "temperature": temperature, "w": w, "out": out},
            {"splits": sums.shape[0]},
            {
                "C": channels,
                "HEADS": heads,
                "CH": ch,
                "CHP": next_power_of_2(ch),
                "BM": rows,
                "PRECISION": "tf32" if small else "tf32x3",
            },
            (heads, cdiv(channels, rows), n),
            8 if next_power_of_2(ch) > 32 else 4,
            1,
            flops=2 * n * channels * channels * ch,
            moved=4 * sums.numel() + (4 + out.dtype.itemsize) * channels * channels,
            label=label,
        )
    )
    return steps
