"""Absolute and relative error of one tensor against another."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.errors import RestortError

Array: TypeAlias = NDArray[Any]

EPSILON = 1e-3  # a quarter of a step of 8 bits, where white is 1
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Spread:
    """Statistics of one kind of error over all elements of a tensor; percentiles with linear interpolation."""

    max: float
    mean: float
    median: float
    p90: float
    p99: float

    @staticmethod
    def of(values: NDArray[np.float64]) -> Spread:
        """Return the statistics of `values`, of any shape; sorts them in place."""
        flat = values.reshape(-1)
        median, p90, p99 = (float(v) for v in np.percentile(flat, PERCENTILES, overwrite_input=True))
        return Spread(float(flat.max()), float(flat.mean()), median, p90, p99)


@dataclass(frozen=True)
class TensorError:
    """The error of a tensor `a` against a tensor `b`.

    shape         of both
    non_finite    elements that are NaN or infinite in `a` or `b`; where there are any, nothing else is known
    absolute      of |a - b|
    relative      of |a - b| / (|b| + epsilon)
    relative_l2   ||a - b|| / ||b||: None where b is zero and a is not
    psnr          in dB, of peak `peak`; infinite where nothing differs, None where no peak was given
    """

    shape: tuple[int, ...]
    epsilon: float
    non_finite: int
    absolute: Spread | None
    relative: Spread | None
    relative_l2: float | None
    psnr: float | None

    def to_json(self) -> dict[str, Any]:
        """Return valid JSON: an infinite PSNR becomes null, and `identical` tells it from an unknown PSNR."""
        values = asdict(self)
        values["shape"] = list(self.shape)
        values["identical"] = self.absolute is not None and self.absolute.max == 0
        if self.psnr is not None and not math.isfinite(self.psnr):
            values["psnr"] = None
        return values


def tensor_error(a: Array, b: Array, *, epsilon: float = EPSILON, peak: float | None = None) -> TensorError:
    """Return the error of `a` against `b`, floating-point tensors of one shape, computed in float64.

    Raises RestortError where the shapes differ or there are no elements.
    """
    if a.shape != b.shape or a.size == 0:
        raise RestortError(f"tensors of shapes {a.shape} and {b.shape} cannot be compared")
    a, b = a.astype(np.float64), b.astype(np.float64)
    bad = int(np.count_nonzero(~(np.isfinite(a) & np.isfinite(b))))
    if bad:
        return TensorError(a.shape, epsilon, bad, None, None, None, None)
    difference = np.abs(a - b)
    norm, scale = float(np.linalg.norm(difference)), float(np.linalg.norm(b))
    psnr = None
    if peak is not None:
        psnr = math.inf if norm == 0 else 20 * math.log10(peak * math.sqrt(a.size) / norm)
    relative = difference / (np.abs(b) + epsilon)
    return TensorError(
        a.shape,
        epsilon,
        0,
        Spread.of(difference),
        Spread.of(relative),
        norm / scale if scale else None if norm else 0.0,
        psnr,
    )


def definitions(epsilon: float) -> dict[str, str]:
    """Return the definition of every number, for records."""
    return {
        "absolute": "|a - b|, where b is the reference; of outputs white is 1, of blocks the network's own numbers",
        "relative": f"|a - b| / (|b| + {epsilon:g})",
        "relative_l2": "||a - b|| / ||b||",
        "psnr": "of the outputs, not clipped or rounded, peak 1, in dB; null where nothing differs",
    }
