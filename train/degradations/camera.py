"""Noise as a camera makes it: back to the sensor, shot and read noise on a Bayer mosaic, and forward again.

Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019, gives the way back (inverse tone curve,
colour matrix, white balance); here every constant is drawn at random instead of measured on one camera.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from train.degradations.colour import (
    apply_matrix,
    constant,
    from_linear,
    to_linear,
    to_rgb,
    to_ycc,
    tone_curve,
)
from train.degradations.draw import Draw
from train.degradations.filters import gaussian_blur, unsharp
from train.degradations.jpeg import full_precision

_BILINEAR = (
    # green at red or blue; the row's own colour at green; the other rows' colour at green; red at blue, blue at red
    ((0, 0, 0, 0, 0), (0, 0, 2, 0, 0), (0, 2, 0, 2, 0), (0, 0, 2, 0, 0), (0, 0, 0, 0, 0)),
    ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 4, 0, 4, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    ((0, 0, 0, 0, 0), (0, 0, 4, 0, 0), (0, 0, 0, 0, 0), (0, 0, 4, 0, 0), (0, 0, 0, 0, 0)),
    ((0, 0, 0, 0, 0), (0, 2, 0, 2, 0), (0, 0, 0, 0, 0), (0, 2, 0, 2, 0), (0, 0, 0, 0, 0)),
)
# Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images",
# ICASSP 2004, figure 2, in the same order
_GRADIENT_CORRECTED = (
    ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0)),
    ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0)),
    ((0, 0, -1, 0, 0), (0, -1, 4, -1, 0), (0.5, 0, 5, 0, 0.5), (0, -1, 4, -1, 0), (0, 0, -1, 0, 0)),
    ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0)),
)  # all in eighths


def demosaic(mosaic: Tensor, corrected: Tensor) -> Tensor:
    """(N, 1, H, W) samples of an RGGB mosaic to (N, 3, H, W), bilinear or, where `corrected`, by Malvar's filters."""
    height, width = mosaic.shape[-2:]
    odd_row = (torch.arange(height, device=mosaic.device) % 2 == 1).view(1, 1, -1, 1)
    odd_column = (torch.arange(width, device=mosaic.device) % 2 == 1).view(1, 1, 1, -1)
    filters = constant(_BILINEAR + _GRADIENT_CORRECTED, mosaic.device)[:, None] / 8
    with full_precision():
        both = F.conv2d(F.pad(mosaic, (2, 2, 2, 2), mode="reflect"), filters)
    green, same_row, other_row, across = torch.where(corrected, both[:, 4:], both[:, :4]).split(1, 1)
    at_red, at_blue = ~odd_row & ~odd_column, odd_row & odd_column
    at_green = odd_row ^ odd_column
    red = torch.where(at_red, mosaic, torch.where(at_blue, across, torch.where(odd_row, other_row, same_row)))
    blue = torch.where(
        at_blue, mosaic, torch.where(at_red, across, torch.where(odd_row, same_row, other_row))
    )
    return torch.cat((red, torch.where(at_green, mosaic, green), blue), 1)


def mosaic(x: Tensor) -> Tensor:
    """(N, 3, H, W) to the (N, 1, H, W) that a sensor with an RGGB filter samples."""
    height, width = x.shape[-2:]
    odd_row = (torch.arange(height, device=x.device) % 2 == 1).view(1, 1, -1, 1)
    odd_column = (torch.arange(width, device=x.device) % 2 == 1).view(1, 1, 1, -1)
    rest = torch.where(odd_row & odd_column, x[:, 2:], x[:, 1:2])
    return torch.where(~odd_row & ~odd_column, x[:, :1], rest)


def _colour_matrices(n: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """(sRGB to sensor, sensor to sRGB), (N, 3, 3): channels overlap at random; rows have sum 1, so gray stays gray."""
    low = ((0.10, 0.0), (0.06, 0.04), (0.0, 0.10))
    high = ((0.38, 0.10), (0.24, 0.20), (0.08, 0.38))
    a, b, c, d, e, f = (draw.uniform(n, low[i][j], high[i][j]).view(n) for i in range(3) for j in range(2))
    rows = (
        torch.stack((1 - a - b, a, b), 1),
        torch.stack((c, 1 - c - d, d), 1),
        torch.stack((e, f, 1 - e - f), 1),
    )
    crossed = [
        torch.linalg.cross(rows[i - 2], rows[i - 1]) for i in range(3)
    ]  # Cramer's rule: no solver, no wait
    determinant = (rows[0] * crossed[0]).sum(1).view(n, 1, 1)
    return torch.stack(rows, 1), torch.stack(crossed, 2) / determinant


def camera(x: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """(noisy, clean): the picture with a camera's noise, and what the same camera would have made without it.

    In half of the samples the clean picture is demosaiced too; in the others only its noise is, because the
    photographs are reduced and so sharper at pixel level than a camera's own. Noise reduction acts on the noise alone,
    as it does where a picture is even; softening or sharpening acts on both, so that the task stays denoising.
    Neither clipped nor rounded.
    """
    n, _, side, _ = x.shape
    power = draw.uniform(n, 1.0, 1.5)
    gains = torch.cat((draw.uniform(n, 1.3, 2.6), torch.ones_like(power), draw.uniform(n, 1.2, 2.4)), 1)
    exposure = draw.uniform(n, 0.7, 1.0)  # headroom, so that noise in highlights is not always clipped
    to_sensor, to_srgb = _colour_matrices(n, draw)

    def develop(raw: Tensor) -> Tensor:
        linear = apply_matrix(raw * gains / exposure, to_srgb)
        return tone_curve(from_linear(linear.clamp(0, 1)), power)

    linear = to_linear(tone_curve(x, 1 / power))
    raw = mosaic((apply_matrix(linear, to_sensor) * exposure / gains).clamp(0, 1))
    iso = draw.uniform(n)
    shot = torch.exp(math.log(1e-5) + (math.log(1e-2) - math.log(1e-5)) * iso)
    read = torch.exp(math.log(2e-9) + (math.log(2e-4) - math.log(2e-9)) * iso + 0.7 * draw.normal(n, 1, 1, 1))
    noisy = raw + (shot * raw + read).sqrt() * draw.normal(n, 1, side, side)
    noisy = torch.where(draw.chance(n, 0.6), noisy.clamp(0, 1), noisy)
    corrected = draw.chance(n, 0.5)
    clean, spoilt = develop(demosaic(raw, corrected)), develop(demosaic(noisy, corrected))
    noise = _reduced(spoilt - clean, draw)
    base = torch.where(draw.chance(n, 0.5), clean, x)
    both = torch.cat((base + noise, base), 1)
    amount = draw.where(n, 0.35, draw.uniform(n, 0.2, 1.2))
    amount = torch.where(draw.chance(n, 0.25), -draw.uniform(n, 0.3, 1.0), amount)
    both = unsharp(both, amount, draw.uniform(n, 0.5, 1.2))
    return both[:, :3], both[:, 3:].clamp(0, 1)


def _reduced(noise: Tensor, draw: Draw) -> Tensor:
    """Noise after a camera's own noise reduction: itself blended with two blurs, coarser in colour than in brightness.

    Blurring weakens it; most of that is given back, since what is left after strong noise reduction of a high ISO is
    as visible as untouched noise of a low one. At most about sigma 40 of 255.
    """
    n = len(noise)
    ycc = to_ycc(noise)
    left = draw.uniform(n, 0.3, 1.0)

    def smoothed(planes: Tensor, share: float, low: float, high: float) -> Tensor:
        sigma = draw.where(n, share, draw.log_uniform(n, low, high), 0.05)
        fine = draw.uniform(n, 0.0, 0.6)  # of the noise that is not blurred at all
        coarse = gaussian_blur(planes, sigma) * (1 + 2 * sigma.clamp(max=3)) ** left
        broad_blur = gaussian_blur(planes, sigma * 2.5) * (1 + 5 * sigma.clamp(max=3)) ** left
        residue = draw.where(n, 0.5, draw.uniform(n, 0.0, 0.7))
        mixed = fine * planes + (1 - fine) * (coarse + residue * (broad_blur - coarse))
        return torch.where(sigma < 0.1, planes, mixed)

    luma = smoothed(ycc[:, :1], 0.65, 0.35, 2.0)
    chroma = smoothed(ycc[:, 1:], 0.7, 0.5, 5.0) * draw.log_uniform(n, 0.25, 1.2)
    reduced = to_rgb(torch.cat((luma, chroma), 1))
    return reduced * torch.rsqrt(1 + (reduced.std((1, 2, 3), keepdim=True) / 0.16) ** 2)
