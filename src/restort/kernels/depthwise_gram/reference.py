"""The op in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise3x3(x: Tensor, dw: Tensor) -> Tensor:
    """Zero-padded depthwise 3x3 of x (N, H, W, M) by dw (10, M): nine taps in the order dy * 3 + dx, and a bias."""
    channels = x.shape[-1]
    weight = dw[:9].T.reshape(channels, 1, 3, 3)
    y = F.conv2d(x.float().permute(0, 3, 1, 2), weight, dw[9], padding=1, groups=channels)
    return y.permute(0, 2, 3, 1).to(x.dtype)


def depthwise_gram(qkv: Tensor, dw: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """qkv (N, H, W, 3 C) -> v (N, H, W, C) and sums (N, heads, ch * (ch + 2)) in float32.

    The sums of a head: q^T k (ch x ch) over all pixels, then sum q^2 and sum k^2 (ch each). Restormer (CVPR 2022),
    section 3.1: what the transposed attention takes from q and k.
    """
    n, h, w, channels = qkv.shape
    y = depthwise3x3(qkv, dw).view(n, h * w, 3, heads, channels // 3 // heads)
    q, k, v = y.unbind(2)
    q, k = q.float(), k.float()
    gram = torch.einsum("nphi,nphj->nhij", q, k).flatten(2)
    return v.reshape(n, h, w, channels // 3), torch.cat([gram, (q * q).sum(1), (k * k).sum(1)], -1)
