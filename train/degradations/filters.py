"""Gaussian blur of pictures and of noise, sharpening and resizing, as products with one small matrix per axis."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from restort.evaluation.resize import resize_matrix
from train.degradations.draw import Draw
from train.degradations.jpeg import full_precision


def _gaussians(sigma: Tensor, size: int) -> Tensor:
    """(N, 1, size, size): the matrix of a Gaussian blur of one axis, rows of sum 1; sigma near 0 gives the identity."""
    i = torch.arange(size, device=sigma.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((i[:, None] - i) / sigma.view(-1, 1, 1).clamp_min(0.05)) ** 2)
    return (weights / weights.sum(2, keepdim=True))[:, None]


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Each sample blurred by its own sigma in pixels, (N, 1, 1, 1); weights renormalised at the borders."""
    with full_precision():
        rows = _gaussians(sigma, x.shape[-2])
        columns = rows if x.shape[-1] == x.shape[-2] else _gaussians(sigma, x.shape[-1])
        return rows @ x @ columns.transpose(-1, -2)


def correlated(noise: Tensor, sigma: Tensor) -> Tensor:
    """White noise blurred by sigma, with the standard deviation it had before."""
    with full_precision():
        matrix = _gaussians(sigma, noise.shape[-1])
        matrix = matrix / matrix.square().sum(3, keepdim=True).sqrt()
        return matrix @ noise @ matrix.transpose(-1, -2)


def unsharp(x: Tensor, amount: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp masking: x plus `amount` of what a blur takes away; a negative amount softens."""
    return x + amount * (x - gaussian_blur(x, sigma))


def gaussian_kernels(n: int, size: int, low: float, high: float, draw: Draw) -> Tensor:
    """(N, size, size) Gaussian kernels of sum 1: half of them round, half stretched in a random direction."""
    long = draw.uniform(n, low, high).view(n, 1, 1)
    ratio = torch.where(
        draw.chance(n, 0.5), torch.ones(1, device=draw.device), draw.uniform(n, 0.35, 1.0)
    ).view(n, 1, 1)
    angle = draw.uniform(n, 0, math.pi).view(n, 1, 1)
    i = torch.arange(size, device=draw.device) - (size - 1) / 2
    y, x = i[:, None], i[None, :]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    kernels = torch.exp(-0.5 * ((along / long) ** 2 + (across / (long * ratio).clamp_min(0.15)) ** 2))
    return kernels / kernels.sum((1, 2), keepdim=True)


def disc_kernels(n: int, size: int, low: float, high: float, draw: Draw) -> Tensor:
    """(N, size, size) discs of sum 1, radius uniform in [low, high] pixels: a lens out of focus.

    The edge is half a pixel soft.
    """
    radius = draw.uniform(n, low, high).view(n, 1, 1)
    i = torch.arange(size, device=draw.device) - (size - 1) / 2
    distance = (i[:, None] ** 2 + i[None, :] ** 2).sqrt()
    kernels = (radius - distance + 0.5).clamp(0, 1)
    return kernels / kernels.sum((1, 2), keepdim=True)


@cache  # never dropped: captured graphs hold the tensors
def _bicubic(length: int, scale: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(resize_matrix(length, 1 / scale)).to(device, dtype)


def bicubic_downscale(x: Tensor, scale: int, *, peak: float = 255.0, eight_bit: bool = True) -> Tensor:
    """Pictures (N, C, H, W) in [0, peak], made `scale` times smaller as MATLAB's `imresize` does to 8-bit pixels.

    Cubic kernel with a = -0.5, widened by `scale`, symmetric borders (see restort.evaluation.resize). MATLAB rounds to
    8 bits after the rows and again after the columns, so `eight_bit` does the same and returns multiples of peak / 255;
    in float64 the LR_bicubic images of Set5, Set14 and BSD100 are met to the bit. Without it nothing is rounded or
    clipped. Crop H and W to multiples of `scale` beforehand, as the test sets do.
    """
    with full_precision():
        for axis in (-2, -1):
            matrix = _bicubic(x.shape[axis], scale, x.dtype, x.device)
            x = matrix @ x if axis == -2 else x @ matrix.T
            if eight_bit:
                step = peak / 255
                x = torch.floor(x / step + 0.5).clamp_(0, 255) * step
    return x


MODES = ("area", "bilinear", "bicubic")


def resize(x: Tensor, size: int, mode: str) -> Tensor:
    """Square pictures to size x size, antialiased where they shrink, by one of MODES."""
    if mode == "area":
        return F.interpolate(x, size=(size, size), mode="area")
    return F.interpolate(x, size=(size, size), mode=mode, align_corners=False, antialias=True)
