"""Pictures that a network reads by rows, so that they need not be in memory as a whole."""

from __future__ import annotations

import numpy as np

from restort.tiling.padding import reflect_index
from restort.utils.array_types import Array, Float32, Rows


class PaddedRows:
    """Rows mirrored at the bottom and on the right to `height` and `width`, as restort.tiling.padding.pad_to does."""

    def __init__(self, rows: Rows, height: int, width: int) -> None:
        self._rows = rows
        self.shape = (*rows.shape[:2], height, width)

    def take_rows(self, index: Array) -> Float32:
        height, width = self._rows.shape[2:]
        x = self._rows.take_rows(reflect_index(height, self.shape[2])[index])
        return x if width == self.shape[3] else x.take(reflect_index(width, self.shape[3]), axis=3)


def take(x: Array, index: Array, axis: int) -> Array:
    """x.take(index, axis), as a view if the index is a range without gaps."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index) and np.array_equal(index, np.arange(first, last + 1)):
        return x[(slice(None),) * axis + (slice(first, last + 1),)]
    return x.take(index, axis=axis)


def take_rows(x: Array | Rows, index: Array) -> Array:
    """The rows `index` of an array (N, C, H, W), a view where possible, or of a picture that is read by rows."""
    return take(x, index, axis=2) if isinstance(x, np.ndarray) else x.take_rows(index)
