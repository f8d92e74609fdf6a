"""The op in plain PyTorch, with weights as the kernels read them."""

from __future__ import annotations

from torch import Tensor

from restort.kernels.conv3x3.reference import conv3x3


def conv3x3_last(x: Tensor, w: Tensor, bias: Tensor, image: Tensor | None = None) -> Tensor:
    """(N, H, W, C) -> (N, rows, H, W) float32, plus `image`; w and bias as in conv3x3."""
    y = conv3x3(x, w, bias)
    return y if image is None else y + image
