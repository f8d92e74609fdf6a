"""Synthetic pictures for measurements: seeded, of any size, with the statistics of photographs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LARGEST, SMALLEST = 0.35, 1.0  # radius: of the picture's longer side, and in pixels
COVERAGE = 6.0  # mean number of discs that lie over a point
MOST = 20_000  # discs
NOISE = 1.0 / 255


def dead_leaves(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """Return a picture of opaque, overlapping discs: float32 (channels, height, width) in [0, 1], 8-bit values.

    The dead-leaves model with radii of density r^-3 has the edges, flat areas and 1/f spectrum of photographs
    (A. B. Lee, D. Mumford, J. Huang, "Occlusion models for natural images", IJCV 41, 2001). White noise does not:
    trained networks are ill-conditioned on it, so errors there mean little. Discs have a gentle slope of brightness and
    are painted at twice the size and averaged down; noise of one 8-bit step is added, as by a camera.
    """
    random = np.random.default_rng([seed, height, width, channels])
    canvas_height, canvas_width = 2 * height, 2 * width
    canvas = np.empty((channels, canvas_height, canvas_width), np.float32)
    canvas[:] = _colour(random, channels)
    # In pixels of the canvas. Leaves of the smallest size would take minutes at 4K: there they are larger.
    largest, smallest = max(2 * LARGEST * max(height, width), 4.0), 2 * SMALLEST
    while (count := _count(canvas_height * canvas_width, largest, smallest)) > MOST:
        smallest *= 1.1
    uniform = random.random(count)
    radii = (smallest**-2 - uniform * (smallest**-2 - largest**-2)) ** -0.5
    rows, columns = random.uniform(0, canvas_height, count), random.uniform(0, canvas_width, count)
    for radius, row, column in zip(radii, rows, columns, strict=True):
        _leaf(canvas, random, float(radius), float(row), float(column))
    picture = canvas.reshape(channels, height, 2, width, 2).mean((2, 4))
    picture += NOISE * random.standard_normal(picture.shape, np.float32)
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255) / 255, np.float32)


def _count(pixels: int, largest: float, smallest: float) -> int:
    """Return how many discs cover each of `pixels` COVERAGE times, from the mean area under a density r^-3."""
    area = 2 * math.pi * math.log(largest / smallest) / (smallest**-2 - largest**-2)
    return int(COVERAGE * pixels / area) + 8


def _colour(random: np.random.Generator, channels: int) -> NDArray[np.float32]:
    """Draw a colour (channels, 1, 1): one brightness and, with less weight, a value per channel."""
    shade = 0.75 * random.random() + 0.25 * random.random(channels)
    return np.asarray(shade, np.float32)[:, None, None]


def _leaf(
    canvas: NDArray[np.float32], random: np.random.Generator, radius: float, row: float, column: float
) -> None:
    """Paint a disc with a gentle slope of brightness across it."""
    _, height, width = canvas.shape
    top, bottom = max(int(row - radius), 0), min(int(row + radius) + 2, height)
    left, right = max(int(column - radius), 0), min(int(column + radius) + 2, width)
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(row))[:, None] / np.float32(radius)
    x = (np.arange(left, right, dtype=np.float32) - np.float32(column))[None] / np.float32(radius)
    slope = 0.08 * random.standard_normal(2).astype(np.float32)
    colour = _colour(random, len(canvas)) + slope[0] * y + slope[1] * x
    place = canvas[:, top:bottom, left:right]
    np.copyto(place, colour, where=y * y + x * x <= 1)
