"""The op in plain PyTorch (Restormer, sections 3.1 and 3.2, with the weights folded)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Tensor = Any

EPSILON = 1e-5


def expand(x: Tensor, w: Tensor, affine: Tensor, dw: Tensor, centred: bool) -> Tensor:
    """Normalisation, 1x1 expansion and depthwise 3x3: (N, H, W, C) -> (N, H, W, M), in x's type.

    w (M, C) with the normalisation's weight in it; affine (2, M), [1] being the shift; dw (10, M): nine taps, bias.
    `centred`: the mean is subtracted (a LayerNorm with a bias). Outside of the image the expanded values are 0.
    """
    mean = x.mean(-1, keepdim=True)
    scale = torch.rsqrt(x.var(-1, correction=0, keepdim=True) + EPSILON)
    y = ((x - mean) if centred else x) * scale
    expanded = (y @ w.to(x).T + affine[1].to(x)).permute(0, 3, 1, 2)
    rows = expanded.shape[1]
    taps = dw[:9].to(x).T.reshape(rows, 1, 3, 3)
    return F.conv2d(expanded, taps, dw[9].to(x), padding=1, groups=rows).permute(0, 2, 3, 1)


def gdfn(
    x: Tensor,
    v: Tensor,
    attention: Tensor,
    attention_b: Tensor | None,
    w: Tensor,
    affine: Tensor,
    dw: Tensor,
    out_w: Tensor,
    out_b: Tensor | None,
    *,
    centred: bool = True,
) -> Tensor:
    """(N, H, W, C) -> (N, H, W, C), in the type of x; pass float64 for a reference.

    x' = x + v @ attention[n]^T + attention_b, then x' + (gelu(gates) * values) @ out_w + out_b.
    v like x; attention (N, C, C); attention_b (C,); w (2 F, C), gates first; affine (2, 2 F); dw (10, 2 F);
    out_w (F, C). Biases that are None are zeros.
    """
    x = x + torch.einsum("nhwc,noc->nhwo", v.to(x), attention.to(x))
    x = x if attention_b is None else x + attention_b.to(x)
    gates, values = expand(x, w, affine, dw, centred).chunk(2, -1)
    y = x + (F.gelu(gates) * values) @ out_w.to(x)
    return y if out_b is None else y + out_b.to(x)
