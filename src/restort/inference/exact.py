"""`--tile exact`: the whole-image result of a Restormer for a picture of any size, in bounded memory.

Restormer's attention sums over all input pixels, so tiles give another result than the whole image. Backends with
`Runner.exact` accumulate these sums strip by strip (restort.backends.strips).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError, UsageError
from restort.tiling.padding import pad_to_multiple
from restort.tiling.rows import PaddedRows
from restort.utils.array_types import Rows
from restort.utils.integers import round_up
from restort.utils.memory import available_memory

if TYPE_CHECKING:
    from restort.models.spec import Spec
    from restort.runner import Progress, Runner

Float32 = npt.NDArray[np.float32]


def check_exact(backend: str, precision: str, overlap: int | None) -> None:
    """Raise UsageError for options that do not go with 'exact' for any model. `backend` may be 'auto'."""
    from restort.backends.registry import BACKENDS

    if overlap is not None:
        raise UsageError("--overlap has no effect with --tile exact, which has no tiles; leave --overlap out")
    if backend == "auto":
        return
    supported = BACKENDS[backend].exact_precisions
    if not supported:
        others = [name for name, other in BACKENDS.items() if other.exact_precisions]
        raise UsageError(
            f"backend {backend!r} does not support --tile exact; use --backend {' or '.join(others)}"
        )
    if precision not in ("auto", *supported):
        raise UsageError(
            f"--tile exact on backend {backend!r} does not support {precision} (supported: {', '.join(supported)}); "
            "leave --precision out"
        )


def resolve_backend(spec: Spec, backend: str, precision: str, overlap: int | None) -> tuple[str, str]:
    """Return the backend and precision that 'exact' runs on. Raises UsageError where there are none."""
    from restort.backends.registry import BACKENDS, check_available, installed

    if not spec.whole_image:
        raise UsageError(
            "--tile exact is for Restormer only; ELAN sees small windows, so its tiles agree with the whole picture; "
            "use --tile auto or none"
        )
    if backend == "auto":
        backend = "fused" if installed("fused") and check_available("fused") is None else "torch"
    check_exact(backend, precision, overlap)
    return backend, BACKENDS[backend].exact_precisions[0] if precision == "auto" else precision


def stream_exact(
    runner: Runner, x: Float32 | Rows, progress: Progress | None = None
) -> Generator[tuple[int, Float32], None, None]:
    """Yield (top, finished rows (N, C', rows, W)) of the network over x (N, C, H, W) in [0, 1], of any size.

    `progress(done, total)` counts the strips of all passes. Raises RestortError where memory or disk run out.
    """
    from restort.backends.strips.feature_maps import temporary_folder

    height, width = x.shape[2:]
    try:
        multiple = runner.spec.size_multiple
        padded: Float32 | Rows
        if isinstance(x, np.ndarray):
            padded = pad_to_multiple(x, multiple)
        else:
            padded = PaddedRows(x, round_up(height, multiple), round_up(width, multiple))
        bands = runner.exact(
            padded, memory_bytes=available_memory() // 2, folder=temporary_folder(), progress=progress
        )
        with closing(cast("Generator[tuple[int, npt.NDArray[Any]], None, None]", bands)):
            for top, band in bands:
                if top < height:
                    yield top, band[:, :, : height - top, :width]
    except (MemoryError, RuntimeError) as error:
        known = ("allocate memory", "out of memory")  # PyTorch raises RuntimeError on a processor
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in known):
            raise
        raise RestortError(
            f"not enough memory for a picture of {width} x {height} pixels, even strip by strip; free some memory"
        ) from None


def run_exact(runner: Runner, x: Float32, progress: Progress | None = None) -> Float32:
    """Collect `stream_exact` into one array: (N, C, H, W) -> (N, C', H, W), not clipped."""
    result: Float32 | None = None
    with closing(stream_exact(runner, x, progress)) as bands:
        for top, band in bands:
            if result is None:
                result = np.empty((*band.shape[:2], *x.shape[2:]), np.float32)
            result[:, :, top : top + band.shape[2]] = band
    assert result is not None
    return result
