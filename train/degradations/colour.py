"""Colour spaces of files and cameras as matrices and curves."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# ITU-T T.871 (JFIF), section 7: full-range YCbCr, chroma about 0
RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


@cache  # never dropped: captured graphs hold the tensors
def constant(values: tuple, device: torch.device) -> Tensor:  # type: ignore[type-arg]
    """A table of numbers as a float32 tensor, copied to the device once. Do not write to it."""
    return torch.tensor(values, dtype=torch.float32).to(device)


def apply_matrix(x: Tensor, matrix: Tensor) -> Tensor:
    """(N, 3, H, W) pixels times a colour matrix, (3, 3) or (N, 3, 3), as sums of planes, so without TF32."""
    matrix = matrix.view(-1, 3, 3, 1, 1)
    planes = [sum(matrix[:, i, j] * x[:, j] for j in range(3)) for i in range(3)]
    return torch.stack(planes, 1)


def to_ycc(x: Tensor) -> Tensor:
    """RGB to (Y, Cb, Cr), in the unit of x; chroma is 0 for gray."""
    return apply_matrix(x, constant(RGB_TO_YCC, x.device))


def to_rgb(x: Tensor) -> Tensor:
    """(Y, Cb, Cr) with chroma about 0 to RGB."""
    return apply_matrix(x, constant(YCC_TO_RGB, x.device))


def to_linear(x: Tensor) -> Tensor:
    """sRGB code values to linear light (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def from_linear(x: Tensor) -> Tensor:
    """Linear light to sRGB code values."""
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def tone_curve(x: Tensor, power: Tensor) -> Tensor:
    """An S-shaped curve through (0, 0), (0.5, 0.5) and (1, 1), steeper in the middle for power > 1.

    1 / power undoes it.
    """
    a, b = x.clamp(1e-4, 1 - 1e-4) ** power, (1 - x).clamp(1e-4, 1 - 1e-4) ** power
    return a / (a + b)


def eight_bit(x: Tensor) -> Tensor:
    """Clipped to [0, 1] and rounded to multiples of 1 / 255."""
    return (x.clamp(0, 1) * 255).round() / 255
