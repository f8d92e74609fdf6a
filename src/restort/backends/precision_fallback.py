"""What a GPU backend does with a result that holds NaN or infinity: compute it again in a precision of more range."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from restort.errors import OutOfMemory, RestortError

Result = TypeVar("Result")

PRECISION_FALLBACK: dict[str, tuple[str, ...]] = {
    "fp16": ("fp16", "bf16", "fp32"),
    "mixed": ("mixed", "bf16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "tf32": ("tf32", "fp32"),
    "fp32": ("fp32",),
}
"""The precisions to try, in order, for each that a runner is made for. bf16 has the range of float32."""


class FallbackWarning:
    """Warns once that a result was computed again; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given = False

    def __call__(self, warn: Callable[[str], object], precision: str, following: str) -> None:
        with self._lock:
            first, self._given = not self._given, True
        if first:
            warn(
                f"{precision} produced NaN/Inf (activations exceed its range); affected tiles are recomputed in "
                f"{following}. Use --precision {following} to avoid the second pass."
            )


def run_with_fallback(
    precisions: Sequence[str],
    run: Callable[[str], tuple[Result, bool]],
    input_is_finite: Callable[[], bool],
    warn: Callable[[str, str], None],
) -> Result:
    """Run in the first of `precisions` and, while the result is not finite though the input is, in the next.

    run     returns the result in a precision, and whether it is finite.
    warn    receives the precision that failed and the next.

    A later precision that raises RestortError is skipped, because not every GPU or library has it; the last is not.
    OutOfMemory is always raised.
    """
    result, finite = run(precisions[0])
    for failed, precision in pairwise(precisions):
        if finite or not input_is_finite():
            break
        warn(failed, precision)
        try:
            result, finite = run(precision)
        except OutOfMemory:
            raise
        except RestortError:
            if precision == precisions[-1]:
                raise
    return result
