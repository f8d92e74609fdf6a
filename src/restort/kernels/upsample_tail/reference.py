"""The op in plain PyTorch, on the kernel's arrays."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Tensor = Any


def upsample_tail(
    x: Tensor, weights: tuple[Tensor, Tensor], colors: int, scale: int, factor: float
) -> Tensor:
    """float32 (N, colors, H * scale, W * scale).

    x        (N, H + 4, W + 4, CS) with two rows and columns of zeros around it
    weights  w (9, CS, M) with M >= colors * scale^2 columns in the order of the shuffle, b float32 (M,)
    factor   of the sum, before b is added
    """
    w, b = weights
    made = colors * scale * scale
    kind = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    kernel = w[..., :made].to(kind).permute(2, 1, 0).reshape(made, -1, 3, 3)
    y = F.conv2d(x[:, 2:-2, 2:-2].to(kind).permute(0, 3, 1, 2), kernel, padding=1) * factor
    return F.pixel_shuffle(y + b[:made, None, None], scale).float()
