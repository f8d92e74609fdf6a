"""Padding to a size multiple by reflection, for any size down to 1x1.

Networks take heights and widths that are multiples of a number (8 for Restormer, 16 for ELAN). The missing
rows and columns are added at the bottom and on the right by mirroring the picture without repeating its
border, as `reflect` means in NumPy and PyTorch; where a picture is smaller than the padding the mirror image
is mirrored again, which PyTorch refuses to do.
"""

from __future__ import annotations

import numpy as np

from restort.utils.array_types import Array


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def reflect_index(size: int, padded: int) -> Array:
    """(padded,) int: which of `size` rows each row of the padded picture is.

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
    """(..., H, W) -> (..., H', W') with H' and W' rounded up to `multiple`; `x` itself where nothing is
    missing."""
    height, width = x.shape[-2:]
    return pad_to(x, round_up(height, multiple), round_up(width, multiple))


def pad_to(x: Array, height: int, width: int) -> Array:
    """(..., H, W) -> (..., height, width), mirrored at the bottom and on the right."""
    if x.shape[-2] != height:
        x = x.take(reflect_index(x.shape[-2], height), axis=-2)
    if x.shape[-1] != width:
        x = x.take(reflect_index(x.shape[-1], width), axis=-1)
    return x


def crop(x: Array, height: int, width: int) -> Array:
    """(..., H, W) -> (..., height, width): the top left part, a view; the inverse of padding."""
    return x[..., :height, :width]
