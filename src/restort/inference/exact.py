"""`--tile exact`: a Restormer over a picture of any size, with the result of the whole picture.

Tiles are another computation for Restormer, whose attention sums over all it is given. A backend that offers
`exact` gathers these sums strip by strip instead (restort.backends.strips).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError, UsageError
from restort.tiling.padding import pad_to_multiple
from restort.utils.memory import available_memory

if TYPE_CHECKING:
    from restort.models.spec import Spec
    from restort.runner import Runner

Float32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

BACKENDS = {"torch": ("fp32",), "fused": ("fp32", "fp16")}
"""Those whose runners have `exact`, and the precisions of it, the usual one first."""


class ExactRunner(Protocol):
    """What a backend's runner offers beyond restort.runner.Runner.

    `exact(x, ...)` yields (top, rows (N, C', rows, W) of the result) from top to bottom, in float32. What is kept
    between the passes is held in memory up to `memory_bytes`, otherwise in files in `folder`, which are gone when
    the iterator is closed.
    """

    def exact(
        self, x: Float32, *, memory_bytes: int, folder: Path, progress: Progress | None = None
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]: ...


def check_exact(backend: str, precision: str, overlap: int | None) -> None:
    """Raises UsageError for options that 'exact' takes with no model; the backend may still be 'auto'."""
    if overlap is not None:
        raise UsageError("--tile exact has no tiles that could overlap; leave --overlap out")
    if backend == "auto":
        return
    if backend not in BACKENDS:
        raise UsageError(f"the backend {backend} has no --tile exact; use --backend {' or '.join(BACKENDS)}")
    if precision not in ("auto", *BACKENDS[backend]):
        raise UsageError(
            f"--tile exact on the backend {backend} computes in {' or '.join(BACKENDS[backend])}, not in {precision}; "
            "leave --precision out"
        )


def settle(spec: Spec, backend: str, precision: str, overlap: int | None) -> tuple[str, str]:
    """The backend and precision that 'exact' runs on, given those asked for; UsageError where there are none."""
    if not spec.whole_image:
        raise UsageError(
            "--tile exact is for Restormer; ELAN looks at small windows, so its tiles agree with the whole picture "
            "as they are: use --tile auto or none"
        )
    if backend == "auto":
        from restort.backends.registry import check_available, installed

        backend = "fused" if installed("fused") and check_available("fused") is None else "torch"
    check_exact(backend, precision, overlap)
    return backend, BACKENDS[backend][0] if precision == "auto" else precision


def stream_exact(
    runner: Runner, x: Float32, progress: Progress | None = None
) -> Generator[tuple[int, Float32], None, None]:
    """Yields (top, finished rows (N, C', rows, W)) of the network over x (N, C, H, W) in [0, 1], of any size.

    `progress(done, total)` counts strips, of all passes. Raises RestortError where memory or disk run out.
    """
    from restort.backends.strips.feature_maps import temporary_folder

    height, width = x.shape[2:]
    try:
        padded = pad_to_multiple(x, runner.spec.size_multiple)
        bands = cast(ExactRunner, runner).exact(
            padded, memory_bytes=available_memory() // 2, folder=temporary_folder(), progress=progress
        )
        with closing(cast(Generator[tuple[int, Float32], None, None], bands)):
            for top, band in bands:
                if top < height:
                    yield top, band[:, :, : height - top, :width]
    except (MemoryError, RuntimeError) as error:
        known = ("allocate memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in known):
            raise
        raise RestortError(
            f"a picture of {width} x {height} pixels does not fit into the memory, not even by strips; "
            "free some memory"
        ) from None


def run_exact(runner: Runner, x: Float32, progress: Progress | None = None) -> Float32:
    """`stream_exact`, put together: (N, C, H, W) -> (N, C', H, W), not clipped."""
    result: Float32 | None = None
    with closing(stream_exact(runner, x, progress)) as bands:
        for top, band in bands:
            if result is None:
                result = np.empty((*band.shape[:2], *x.shape[2:]), np.float32)
            result[:, :, top : top + band.shape[2]] = band
    assert result is not None
    return result
