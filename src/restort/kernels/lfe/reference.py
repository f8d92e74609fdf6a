"""The op in plain PyTorch, on the kernel's arrays."""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any

_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0), (0, 0))


def moved(x: Tensor, group: int) -> Tensor:
    """(N, H, W, C) -> the pixel that group `group` of a shift takes, zero outside of the image."""
    dy, dx = _MOVES[group]
    n, h, w, c = x.shape
    padded = x.new_zeros(n, h + 2, w + 2, c)
    padded[:, 1:-1, 1:-1] = x
    return padded[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]


def shift(x: Tensor, channels: int) -> Tensor:
    """(N, H, W, C), of which `channels` are moved in five groups."""
    size = channels // 5
    edges = [0, size, 2 * size, 3 * size, 4 * size, x.shape[3]]
    return torch.cat([moved(x[..., edges[g] : edges[g + 1]], g) for g in range(5)], -1)


def lfe(
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor] | None,
    channels: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x', v, q) in x's dtype.

    x        (N, H + 4, W + 4, CS) with two rows and columns of zeros around it; CS is `channels` padded to 64s
    weights  w0 (5, CS, HP): for each group of the second shift its hidden channels, HP padded; b0 (5, HP);
             w1 (5, HP, CS); b1 (CS,). Biases float32.
    values, queries  w (3, CS, DP) for the three window sizes, b (3, DP)
    x'       (N, H, W, CS), v and q (N, H, W, 3, DP), of which the kernel stores the first DS of DP columns
    """
    w0, b0, w1, b1 = weights
    inner = x[:, 2:-2, 2:-2]
    taken = shift(inner.float() if x.dtype.itemsize < 4 else inner, channels)
    result = inner.to(taken.dtype) + b1
    for g in range(5):
        hidden = (taken @ w0[g].to(taken.dtype) + b0[g]).relu().to(x.dtype).to(taken.dtype)
        result = result + moved(hidden, g) @ w1[g].to(taken.dtype)
    result = result.to(x.dtype)

    def project(w: Tensor, b: Tensor) -> Tensor:
        y = torch.einsum("nhwc,pcd->nhwpd", result.to(taken.dtype), w.to(taken.dtype)) + b
        return y.to(x.dtype)

    return result, project(*values), None if queries is None else project(*queries)
