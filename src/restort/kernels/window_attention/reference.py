"""The op in plain PyTorch, on the kernel's arrays."""

from __future__ import annotations

import math
from typing import Any

import torch

Tensor = Any

SIZES = (4, 8, 16)


def _windows(x: Tensor, size: int) -> Tensor:
    """(N, H, W, C) -> (windows, size * size, C)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // size, size, w // size, size, c)
    return x.transpose(2, 3).reshape(-1, size * size, c)


def attend(q: Tensor, v: Tensor, size: int, rolled: bool) -> Tensor:
    """softmax of q q^T, times log 2, times v, within windows: (N, H, W, D) twice -> (N, H, W, D)."""
    offset = size // 2 if rolled else 0
    n, h, w, d = v.shape
    q, v = (_windows(t.roll((-offset, -offset), (1, 2)), size) for t in (q, v))
    p = torch.softmax(q @ q.transpose(1, 2) * math.log(2), -1)
    y = (p @ v).reshape(n, h // size, w // size, size, size, d).transpose(2, 3).reshape(n, h, w, d)
    return y.roll((offset, offset), (1, 2))


def window_attention(
    q: Tensor,
    v: Tensor,
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    rolled: bool,
    extra: Tensor | None = None,
) -> Tensor:
    """x + W concat(attention) + b (+ extra): (N, H, W, CS) in x's dtype.

    q, v     (N, H, W, 3 * DS), the window sizes' channels one after the other; q multiplied by sqrt(log2(e))
    x        (N, H + 4, W + 4, CS) with two rows and columns of zeros around it, and so is `extra`
    weights  w (3, DP, CS) with DP >= DS, b float32 (CS,)
    """
    w, b = weights
    kind = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    depth = v.shape[3] // 3
    y = x[:, 2:-2, 2:-2].to(kind) + b
    for i, size in enumerate(SIZES):
        part = slice(i * depth, (i + 1) * depth)
        attended = attend(q[..., part].to(kind), v[..., part].to(kind), size, rolled).to(x.dtype).to(kind)
        y = y + attended @ w[i, :depth].to(kind)
    if extra is not None:
        y = y + extra[:, 2:-2, 2:-2].to(kind)
    return y.to(x.dtype)
