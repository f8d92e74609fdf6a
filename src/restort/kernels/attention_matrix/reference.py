"""The op in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_matrix(sums: Tensor, temperature: Tensor, out_w: Tensor) -> Tensor:
    """sums (splits, N, heads, ch * (ch + 2)), temperature (heads,), out_w (C, C) -> (N, C, C) float32.

    Restormer (CVPR 2022), section 3.1: softmax(temperature * q^T k / (|q| |k|)) of each head, with lengths of at
    least 1e-12, and then the output projection: out_w @ blockdiag(heads), so that x' = x + v @ matrix^T.
    """
    total = sums.double().sum(0)
    n, heads, size = total.shape
    ch = round((size + 1) ** 0.5) - 1
    gram = total[..., : ch * ch].view(n, heads, ch, ch)
    q = total[..., ch * ch : ch * ch + ch].sqrt().clamp_min(1e-12)
    k = total[..., ch * ch + ch :].sqrt().clamp_min(1e-12)
    scores = gram / q[..., :, None] / k[..., None, :] * temperature.double().view(heads, 1, 1)
    weights = scores.softmax(-1)
    w = out_w.double().view(-1, heads, ch)
    return torch.einsum("chi,nhij->nchj", w, weights).reshape(n, heads * ch, heads * ch).float()
