"""The op in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from restort.kernels.depthwise_gram.reference import depthwise3x3


def gelu_gate_project(expanded: Tensor, dw: Tensor, w: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x + (gelu(gate) * value) @ w + bias, gate and value the halves of the depthwise 3x3 of `expanded`.

    expanded (N, H, W, 2 FP), dw (10, 2 FP), w (FP, C), bias (C,), x (N, H, W, C). Restormer (CVPR 2022), section 3.2.
    """
    gate, value = depthwise3x3(expanded.float(), dw).chunk(2, -1)
    gated = (F.gelu(gate) * value).to(x.dtype)
    return (x.float() + gated.float() @ w.float() + bias).to(x.dtype)
