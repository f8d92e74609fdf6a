"""The kernel in Triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch
from restort.utils.integers import cdiv, next_power_of_2

Tensor = Any


@triton.jit(do_not_specialize=["H", "W"])
def conv3x3_first_kernel(
    image, w, y, H, W,
    CIN: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    p = tl.program_id(0) * BM + tl.arange(0, BM)
    row, column = p // W, p % W
    valid = p < H * W
    k = tl.arange(0, K)
    dy, dx = (k % 9 // 3 - 1)[None, :], (k % 3 - 1)[None, :]
    there = (
        (row[:, None] + dy >= 0)
        & (row[:, None] + dy < H)
        & (column[:, None] + dx >= 0)
        & (column[:, None] + dx < W)
    )
    at = image + (n * CIN + k // 9)[None, :].to(tl.int64) * (H * W) + p[:, None] + dy * W + dx
    a = tl.load(at, mask=there & valid[:, None] & (k < 9 * CIN)[None, :], other=0.0)
    m = tl.arange(0, BN)
    rows = tl.load(w + m[:, None] * K + k[None, :], mask=(m < C)[:, None], other=0.0)
    acc = tl.dot(a, tl.trans(rows), input_precision="tf32x3")
    to = y + (n.to(tl.int64) * H * W + p)[:, None] * C + m[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=valid[:, None] & (m < C)[None, :])


def launch(image: Tensor, w: Tensor, y: Tensor, *, label: str = "") -> Launch:
    """Return a launch: y (N, H, W, rows) from image (N, C, H, W) and w (rows, K), float32; K is a power of two."""
    n, channels, h, width = image.shape
    rows, k = w.shape
    return Launch(
        conv3x3_first_kernel,
        {"image": image, "w": w, "y": y},
        {"H": h, "W": width},
        {"CIN": channels, "K": k, "C": rows, "BN": next_power_of_2(rows), "BM": 64},
        (cdiv(h * width, 64), n),
        4,
        1,
        flops=2 * n * h * width * 9 * channels * rows,
        moved=image.numel() * 4 + y.numel() * y.dtype.itemsize,
        label=label,
    )
