"""The op in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5


def layernorm_conv1x1(x: Tensor, w: Tensor, affine: Tensor) -> Tensor:
    """rstd * (x @ w^T - mean * affine[0]) + affine[1] for x (..., C), w (M, C), affine (2, M) -> (..., M).

    Restormer (CVPR 2022), section 3: layer normalisation and the 1x1 convolution after it, with the normalisation's
    weight folded into w; affine[0] is zero where the normalisation does not centre.
    """
    exact = x.float()
    variance, mean = torch.var_mean(exact, dim=-1, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + EPSILON)
    return (scale * (exact @ w.float().T - mean * affine[0]) + affine[1]).to(x.dtype)


def apply(x: Tensor, v: Tensor, attention: Tensor, bias: Tensor) -> Tensor:
    """x + v @ attention[n]^T + bias for x, v (N, H, W, C), attention (N, C, C)."""
    return (x.float() + torch.einsum("nhwc,ndc->nhwd", v.float(), attention.float()) + bias).to(x.dtype)
