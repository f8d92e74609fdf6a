"""The op in plain PyTorch, with weights as the kernels read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3_first(image: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """image (N, C, H, W) float32, w (rows, K >= 9 C) in the order (channel, dy, dx) -> (N, H, W, rows)."""
    channels = image.shape[1]
    kernel = w[:, : 9 * channels].view(-1, channels, 3, 3)
    return F.conv2d(image, kernel, padding=1).permute(0, 2, 3, 1).to(dtype)
