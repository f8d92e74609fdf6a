"""Blend a result with its input, for `--strength` below 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from restort.tiling.rows import take_rows
from restort.utils.array_types import Array, Float32, Rows

_ROWS = 256  # blended at a time, to keep the copies small


def blend(result: Float32, x: Float32, strength: float) -> Float32:
    """Compute (1 - strength) * input + strength * result of x (N, C, H, W) and its result at any scale."""
    bands = [band for _, band in blended_bands([(0, result)], x, result.shape[3] // x.shape[3], strength)]
    return np.concatenate(bands, axis=2)


def blended_bands(
    bands: Iterable[tuple[int, Float32]], x: Float32 | Rows, scale: int, strength: float
) -> Iterator[tuple[int, Float32]]:
    """Bands (top, rows of the result) of the input x (N, C, H, W) in [0, 1], each blended with the input there.

    The input is enlarged bicubically for a scale above 1. The result is clipped to [0, 1] first, as a file of it would
    be; strength 0 then gives the input exactly, and 1 the result.
    """
    for top, band in bands:
        for start in range(0, band.shape[2], _ROWS):
            rows = np.clip(band[:, :, start : start + _ROWS], 0, 1)
            original = enlarged_rows(x, scale, top + start, rows.shape[2])
            yield top + start, original + np.float32(strength) * (rows - original)


def enlarged_rows(x: Float32 | Rows, scale: int, top: int, count: int) -> Float32:
    """Rows `top` to `top + count` of x (N, C, H, W) enlarged `scale` times: (N, C, count, W * scale).

    Cubic convolution with a = -0.5 and borders repeated by half-sample symmetry, as MATLAB's imresize enlarges; not
    clipped. For scale 1 the rows as they are.
    """
    if scale == 1:
        return take_rows(x, np.arange(top, top + count))
    index, weight = _taps(x.shape[2], scale, np.arange(top, top + count))
    rows = np.unique(index)
    near, places = take_rows(x, rows), np.searchsorted(rows, index)
    columns = np.zeros((*x.shape[:2], count, x.shape[3]), np.float32)
    for k in range(4):
        columns += weight[:, k, None] * near[:, :, places[:, k]]
    index, weight = _taps(x.shape[3], scale, np.arange(x.shape[3] * scale))
    enlarged = np.zeros((*x.shape[:2], count, x.shape[3] * scale), np.float32)
    for k in range(4):
        enlarged += weight[:, k] * columns[..., index[:, k]]
    return enlarged


def _taps(length: int, scale: int, positions: Array) -> tuple[Array, Array]:
    """For each output position (n,): the four input pixels it is made of, and their weights; both (n, 4)."""
    centre = (positions + 0.5) / scale - 0.5
    index = np.floor(centre).astype(np.int64)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - index)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    mirrored = index % (2 * length)
    mirrored = np.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    return mirrored, np.where(distance <= 1, near, far).astype(np.float32)
