"""The op in plain PyTorch, on the kernel's arrays."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

Tensor = Any


def colour_head(image: Tensor, offset: Tensor, weights: tuple[Tensor, Tensor], value_range: float) -> Tensor:
    """(N, H, W, CS) in the weights' dtype.

    image    (N, C, H, W) in [0, 1]
    offset   (C,) float32: what is added to image * value_range before the border of zeros
    weights  w (K, CS): rows in the order (colour, row, column) of the taps, zeros after; b float32 (CS,)
    """
    w, b = weights
    colors = image.shape[1]
    kernel = w[: 9 * colors].to(image.dtype).T.reshape(-1, colors, 3, 3)
    centred = image * value_range + offset.to(image.dtype)[:, None, None]
    return F.conv2d(centred, kernel, b.to(image.dtype), padding=1).permute(0, 2, 3, 1).to(w.dtype)
