"""The op in plain PyTorch (Restormer, section 3.1, with the weights folded)."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.gdfn.reference import expand

Tensor = Any


def mdta_gram(
    x: Tensor, w: Tensor, affine: Tensor, dw: Tensor, heads: int, *, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """x (N, H, W, C) -> v (N, H, W, C) and sums (N, heads, ch * (ch + 2)), in the type of x; ch = C / heads.

    w (3 C, C), affine (2, 3 C), dw (10, 3 C) in the order q, k, v, as restort.kernels.gdfn.reference.expand takes them.
    The sums of a head: q^T k (ch x ch) over all pixels, then sum q^2 and sum k^2 (ch each).
    """
    n, h, width, c = x.shape
    y = expand(x, w, affine, dw, centred).reshape(n, h * width, 3, heads, c // heads)
    q, k, v = y.unbind(2)
    gram = torch.einsum("nphi,nphj->nhij", q, k).flatten(2)
    return v.reshape(n, h, width, c), torch.cat([gram, (q * q).sum(1), (k * k).sum(1)], -1)
