"""Bicubic resizing as in MATLAB's `imresize`, the "bicubic" of super-resolution tables.

The kernel is Keys' cubic convolution with a = -0.5 (R. Keys, "Cubic convolution interpolation for digital
image processing", IEEE TASSP 29, 1981, equation 15). Where the picture shrinks, the kernel is widened by the
factor and so low-passes first (antialiasing). The border repeats by half-sample symmetry. Each axis is a
product with one small dense matrix in float64. The 8-bit low-resolution images of Set5, Set14 and BSD100 are
reproduced to the bit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restort.errors import UsageError


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel at x, with a = -0.5; zero beyond |x| = 2."""
    a = np.abs(x)
    near = (1.5 * a - 2.5) * a * a + 1.0
    far = ((-0.5 * a + 2.5) * a - 4.0) * a + 2.0
    return np.where(a <= 1, near, np.where(a <= 2, far, 0.0))


@lru_cache(maxsize=64)
def resize_matrix(length: int, scale: float) -> NDArray[np.float64]:
    """Return the matrix (ceil(length * scale), length) that resizes one axis; its rows sum to 1.

    The matrix is cached: do not write to it.

    `scale` above 1 enlarges, below 1 shrinks (1 / 4 makes a quarter).
    """
    if length < 1 or not scale > 0:
        raise UsageError(f"cannot resize an axis of {length} pixels by {scale:g}; both must be positive")
    size = math.ceil(length * scale - 1e-9)  # 1/3 is not exact: 3 * (1/3) must stay 1
    stretch = min(scale, 1.0)  # below 1 the kernel widens: antialiasing
    centre = (np.arange(size) + 0.5) / scale - 0.5
    taps = math.ceil(4 / stretch) + 2
    index = np.floor(centre - 2 / stretch)[:, None] + np.arange(taps)
    weight = stretch * cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    mirror = index.astype(np.int64) % (2 * length)
    mirror = np.where(mirror < length, mirror, 2 * length - 1 - mirror)
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size)[:, None], mirror), weight)
    matrix.setflags(write=False)
    return matrix


def _top(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max)


def imresize(image: NDArray[np.generic], scale: float) -> NDArray[np.generic]:
    """Resize a picture by `scale` on both axes, bicubic, antialiased where it shrinks.

    image     (H, W) or (H, W, C)
    returns   (ceil(H * scale), ceil(W * scale)[, C]). uint8 and uint16 keep their type, rounded half up and clipped
              after the rows and again after the columns, as in MATLAB. Floats of any range are neither rounded nor
              clipped: float32 stays float32, others become float64.
    """
    if image.ndim not in (2, 3):
        raise UsageError(f"imresize takes a picture of 2 or 3 axes, not one of {image.ndim}")
    integer = np.issubdtype(image.dtype, np.integer)
    out = image.reshape(*image.shape[:2], -1).astype(np.float64)
    for axis in (0, 1):
        matrix = resize_matrix(image.shape[axis], float(scale))
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
        if integer:
            out = np.clip(np.floor(out + 0.5), 0, _top(image.dtype))
    out = out.reshape(*out.shape[:2], *image.shape[2:])
    if integer:
        return np.asarray(out, dtype=image.dtype)
    return np.asarray(out, dtype=np.float32 if image.dtype == np.float32 else np.float64)
