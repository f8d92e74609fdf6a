"""3x3 convolutions in plain PyTorch, with weights as the kernels read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """x (N, H, W, C), w (rows, 3, K >= 3 C): for each dy the numbers (dx, channel) -> (N, rows, H, W) float32."""
    channels = x.shape[-1]
    kernel = w[:, :, : 3 * channels].float().view(-1, 3, 3, channels).permute(0, 3, 1, 2)
    return F.conv2d(x.float().permute(0, 3, 1, 2), kernel, bias, padding=1)


def down(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, H / 2, W / 2, 4 rows), the order of torch's PixelUnshuffle."""
    return F.pixel_unshuffle(conv3x3(x, w, bias), 2).permute(0, 2, 3, 1).to(x.dtype)


def up(x: Tensor, w: Tensor, bias: Tensor, skip: Tensor | None = None) -> Tensor:
    """(N, H, W, C) -> (N, 2 H, 2 W, rows / 4) for rows in the order (dy, dx, channel), then `skip` beside it."""
    y = conv3x3(x, w, bias)
    n, rows, height, width = y.shape
    y = y.view(n, 2, 2, rows // 4, height, width).permute(0, 4, 1, 5, 2, 3)
    y = y.reshape(n, 2 * height, 2 * width, rows // 4).to(x.dtype)
    return y if skip is None else torch.cat([y, skip], -1)
