"""Noise of pictures as they come: white, correlated over several scales, stronger in colour, film grain."""

from __future__ import annotations

import torch
from torch import Tensor

from train.degradations.colour import eight_bit, to_rgb, to_ycc
from train.degradations.draw import Draw
from train.degradations.filters import correlated, gaussian_blur


def gaussian_noise(
    x: Tensor, sigma: Tensor | float | tuple[float, float], generator: torch.Generator
) -> Tensor:
    """`x` (N, ...) with white Gaussian noise, neither clipped nor rounded.

    `sigma`, in units of x: one number, one per sample (a tensor of N), or a range that each sample draws from
    uniformly.
    """
    n, device = len(x), x.device
    if isinstance(sigma, tuple):
        low, high = sigma
        sigma = low + (high - low) * torch.rand(n, generator=generator, device=device)
    if isinstance(sigma, Tensor):
        sigma = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return x + sigma * torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype)


def white(x: Tensor, low: float, high: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """(noisy, clean): white noise, sigma uniform in [low, high] of 255; a tenth of the pictures gray, their noise too.

    Half of the samples are as a file holds them, clipped and rounded to 8 bits.
    """
    n = len(x)
    noise = draw.normal(*x.shape)
    gray = draw.chance(n, 0.1)
    x = torch.where(gray, to_ycc(x)[:, :1].clamp(0, 1), x)
    y = x + draw.uniform(n, low, high) / 255 * torch.where(gray, noise[:, :1], noise)
    return torch.where(draw.chance(n, 0.5), eight_bit(y), y), x


Scale = tuple[float, float, float]  # sigma of the blur, least and most, in pixels; weight in the mixture

# Any camera, phone or editor
ANY_LUMA: tuple[Scale, ...] = ((0.05, 0.4, 1.0), (0.5, 1.0, 1.0), (1.0, 2.0, 1.0), (2.0, 4.0, 1.0))
ANY_CHROMA: tuple[Scale, ...] = ((0.05, 0.8, 1.0), (1.0, 2.0, 1.0), (2.0, 4.0, 1.0), (4.0, 8.0, 1.0))
# What the JPEG engine of a camera with a large sensor leaves: fine in brightness, coarse in colour
CAMERA_LUMA: tuple[Scale, ...] = ((0.4, 0.95, 1.0), (1.2, 4.0, 0.35))
CAMERA_CHROMA: tuple[Scale, ...] = ((1.2, 3.4, 1.0), (3.5, 7.0, 0.3))


def _scales(n: int, channels: int, side: int, scales: tuple[Scale, ...], draw: Draw) -> Tensor:
    """Noise of unit standard deviation: white noise blurred by each of `scales`, mixed at random.

    A sigma is drawn per sample from its range.
    """
    shares = torch.stack([weight * draw.uniform(n) ** 2 for _, _, weight in scales])
    shares = shares / shares.square().sum(0).sqrt().clamp_min(1e-6)
    total = torch.zeros(n, channels, side, side, device=draw.device)
    for share, (low, high, _) in zip(shares, scales, strict=True):
        total = total + share * correlated(draw.normal(n, channels, side, side), draw.uniform(n, low, high))
    return total


def processed(x: Tensor, draw: Draw, low: float = 1.0, high: float = 30.0) -> Tensor:
    """Noise as cameras and phones leave it after their own noise reduction, by its statistics alone.

    Luma and chroma hold noise of several scales (chroma the coarser ones), so that the autocorrelation reaches as far
    as real noise's (0.7, 0.5, 0.25 at lags 1, 2, 4). Its strength follows brightness, and edges, where noise reduction
    holds back, or flat parts. The standard deviation is log-uniform in [low, high] of 255. Neither clipped nor rounded.
    """
    n, _, side, _ = x.shape
    luma = _scales(n, 1, side, ANY_LUMA, draw)
    chroma = _scales(n, 2, side, ANY_CHROMA, draw)
    return _added(x, luma, chroma * draw.log_uniform(n, 0.1, 1.6), draw, low, high)


def camera_jpeg(x: Tensor, draw: Draw, low: float = 1.5, high: float = 14.0) -> Tensor:
    """`processed`, narrowed to what the JPEG engines of cameras with large sensors leave at a high ISO.

    In brightness a blur of 0.4 to 0.95 pixels, with a weaker coarse scale (autocorrelation about 0.65, 0.3, 0.15 at
    lags 1, 2, 4); in each colour difference one of 1.2 to 3.4 pixels (0.9, 0.8, 0.5, 0.13 at lags 1, 2, 4, 8) and
    0.2 to 0.8 of the strength.
    """
    n, _, side, _ = x.shape
    luma = _scales(n, 1, side, CAMERA_LUMA, draw)
    chroma = _scales(n, 2, side, CAMERA_CHROMA, draw)
    return _added(x, luma, chroma * draw.log_uniform(n, 0.2, 0.8), draw, low, high)


def _added(x: Tensor, luma: Tensor, chroma: Tensor, draw: Draw, low: float, high: float) -> Tensor:
    """`x` plus noise (luma (N, 1, S, S), chroma (N, 2, S, S)) whose strength follows brightness and edges."""
    n = len(x)
    y = to_ycc(x)[:, :1].clamp(0, 1)
    one = torch.ones(n, 1, 1, 1, device=x.device)
    smooth = gaussian_blur(y, one)
    dark, bright = draw.uniform(n, 0.3, 1.5), draw.uniform(n, 0.3, 1.5)
    strength = dark + (bright - dark) * smooth
    edges = ((y - gaussian_blur(y, 2 * one)).abs() * 12).clamp(max=1)
    edges = gaussian_blur(edges, 1.5 * one)
    strength = strength * (1 + draw.where(n, 0.4, draw.uniform(n, -0.7, 1.5)) * edges)
    noise = to_rgb(torch.cat((luma, chroma), 1)) * strength
    sigma = draw.log_uniform(n, low, high) / 255
    return x + noise * sigma / noise.std((1, 2, 3), keepdim=True).clamp_min(1e-6)


def grain(x: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """(grained, clean): film grain in brightness, strongest in the middle tones; a third of the pictures gray."""
    n, _, side, _ = x.shape
    gray = to_ycc(x)[:, :1].clamp(0, 1)
    x = torch.where(draw.chance(n, 0.33), gray.expand_as(x), x)
    noise = (
        correlated(draw.normal(n, 1, side, side), draw.uniform(n, 0.3, 1.6))
        * draw.log_uniform(n, 3, 25)
        / 255
    )
    middle = 0.4 + 0.6 * (4 * gray * (1 - gray))
    return x + noise * middle, x
