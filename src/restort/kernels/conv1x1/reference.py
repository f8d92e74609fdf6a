"""The op in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def conv1x1(
    a: Tensor, w: Tensor, bias: Tensor, *, b: Tensor | None = None, x: Tensor | None = None
) -> Tensor:
    """cat(a, b) @ w^T + bias (+ x).

    a (N, H, W, KA), b (N, H, W, KB), w (C, KA + KB) or per image (N, C, KA + KB), bias (C,), x (N, H, W, C).
    """
    source = a if b is None else torch.cat([a, b], -1)
    if w.ndim == 2:
        w = w.expand(a.shape[0], *w.shape)
    y = torch.einsum("nhwk,nck->nhwc", source.float(), w.float()) + bias
    return (y if x is None else y + x.float()).to(a.dtype)
