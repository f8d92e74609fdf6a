"""Reflect padding to a size multiple, for any size down to 1x1.

Networks take heights and widths that are multiples of a number (8 for Restormer, 16 for ELAN). Padding adds the missing
rows and columns at the bottom and on the right, mirrored without repeating the border, like `reflect` in NumPy and
PyTorch. If the picture is smaller than the padding, the mirror image is mirrored again (PyTorch refuses that).
"""

from __future__ import annotations

import numpy as np

from restort.utils.array_types import Array
from restort.utils.integers import round_up


def reflect_index(size: int, padded: int) -> Array:
    """Source row of each row of the padded picture: (padded,) int in [0, size).

    The rows run 0, 1, ..., size - 1, size - 2, ..., 1, 0, 1, ...: a triangle wave of period 2 * (size - 1).
    """
    if size < 1 or padded < size:
        raise ValueError(f"cannot pad {size} rows to {padded}")
    if size == 1:
        return np.zeros(padded, np.intp)
    period = 2 * (size - 1)
    phase = np.arange(padded) % period
    return np.minimum(phase, period - phase)


def pad_to_multiple(x: Array, multiple: int) -> Array:
    """Pad (..., H, W) so that both are multiples of `multiple`; return `x` itself if they are."""
    height, width = x.shape[-2:]
    return pad_to(x, round_up(height, multiple), round_up(width, multiple))


def pad_to(x: Array, height: int, width: int) -> Array:
    """Pad (..., H, W) -> (..., height, width) at the bottom and on the right."""
    if x.shape[-2] != height:
        x = x.take(reflect_index(x.shape[-2], height), axis=-2)
    if x.shape[-1] != width:
        x = x.take(reflect_index(x.shape[-1], width), axis=-1)
    return x


def crop(x: Array, height: int, width: int) -> Array:
    """Undo the padding: (..., H, W) -> (..., height, width), a view of the top left part."""
    return x[..., :height, :width]
