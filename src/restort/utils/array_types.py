"""Names for the types of arrays."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Float32: TypeAlias = npt.NDArray[np.float32]


class Rows(Protocol):
    """float32 (N, C, H, W) in [0, 1] of which rows are taken, from top to bottom for speed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def take_rows(self, index: Array) -> Float32:
        """Return the rows `index`, (rows,) int: (N, C, rows, W)."""
