"""The contract of everything that computes: arrays in, arrays out."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from restort.errors import OutOfMemory, RestortError, UsageError
from restort.models.spec import Spec
from restort.utils.array_types import Rows

Array: TypeAlias = npt.NDArray[Any]
Notify: TypeAlias = Callable[[str], object]
Progress: TypeAlias = Callable[[int, int], None]
"""Called as progress(done, total)."""
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "tf32", "mixed"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "tf32", "mixed")

_log = logging.getLogger("restort")


class Runner(ABC):
    """One network on one backend, ready to run; `restort.backends.registry.create` makes them.

    name          of the backend, a key of restort.backends.registry.BACKENDS
    precision     numbers it computes in, one of PRECISIONS
    spec          hyper-parameters of the network
    notify, warn  receive one sentence each about what takes long and about what the user should know

    A backend implements `__call__` and `close`. The other methods are abilities with defaults; it overrides those that
    it has. Several threads may call one runner.
    """

    name: str
    precision: str
    spec: Spec
    notify: Notify = _log.info
    warn: Notify = _log.warning

    @abstractmethod
    def __call__(self, x: Array, /) -> Array:
        """Run the network.

        x         float32 (N, C, H, W) in [0, 1]; H and W are multiples of `spec.size_multiple`
        returns   float32 (N, C', H * scale, W * scale), C-contiguous, not clipped; the caller owns it

        Raises OutOfMemory (or any MemoryError) where x is too large for the memory; smaller arrays still run then.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the runner holds. A second call does nothing."""

    def stream(self, arrays: Iterable[Array]) -> Iterator[Array] | None:
        """Return a generator of the results of `arrays` in order, which overlaps copies with computing.

        None where the backend has nothing to overlap: call it array by array.
        """
        return None

    def restore_pixels(self, pixels: Array) -> Array | None:
        """Run a whole picture as files have it, converted, padded and rounded on the device.

        pixels    uint8 or uint16 (H, W, C), of any height and width; C is `spec.in_channels`
        returns   (H * scale, W * scale, C') of the same type, equal to what `__call__` gives after
                  `Picture.to_unit` and before `Picture.from_unit`; None where the backend leaves that to the host

        Raises OutOfMemory where the picture is too large, RestortError where the result is not finite.
        """
        return None

    def expect(self, shape: tuple[int, ...]) -> None:  # noqa: B027, a default that does nothing
        """Prepare for many arrays of `shape`: compile for it before the first one."""

    def shrink(self) -> None:  # noqa: B027, a default that does nothing
        """Give back memory that is kept for later calls: called after the memory has run out."""

    @property
    def device(self) -> str | None:
        """Name of the GPU; None on the processor."""
        return None

    def device_peak_bytes(self) -> int | None:
        """Return the largest memory taken on the GPU so far; None on the processor."""
        return None

    def tile_memory(self) -> tuple[int, int] | None:
        """Return (bytes that a picture may take now, bytes per pixel of the input); None for the computer's memory."""
        return None

    def timer(self, x: Array) -> Callable[[], float] | None:
        """Return a function that runs x once, on the device already, and returns milliseconds by the device's events.

        None where the device has no events: measure calls by the wall clock.
        """
        return None

    def blocks(self, x: Array) -> dict[str, Array] | None:
        """Return every block's output for x, float32 (N, C, H, W), by the names of restort.models.block_names.

        None where the backend does not expose them.
        """
        return None

    def exact(
        self, x: Array | Rows, *, memory_bytes: int, folder: Path, progress: Progress | None = None
    ) -> Iterator[tuple[int, Array]]:
        """Yield (top, rows (N, C', rows, W)) of the whole-image result from top to bottom, computed strip by strip.

        x may be read by rows (restort.utils.array_types.Rows): all of it twice, from top to bottom.
        Intermediate feature maps stay in memory up to `memory_bytes`, then in files in `folder`, which are removed when
        the iterator is closed.
        """
        raise UsageError(f"backend {self.name!r} does not support --tile exact; use --backend fused or torch")


@dataclass(frozen=True)
class BackendStatus:
    """One backend on this machine.

    installed   its library can be found
    works       a network could be run now; otherwise `reason` says why not and `remedy` what helps
    version     of its library, where known
    """

    name: str
    installed: bool
    works: bool
    version: str | None
    precisions: tuple[str, ...]
    reason: str | None
    remedy: str | None


def checked(x: Array, spec: Spec) -> Array:
    """Return `x` as C-contiguous float32. Raises RestortError for a shape that the network does not take."""
    check_shape(tuple(x.shape), spec)
    return np.ascontiguousarray(x, np.float32)


def checked_rows(x: Array | Rows, spec: Spec) -> Array | Rows:
    """Like `checked`, also for a picture that is read by rows."""
    if isinstance(x, np.ndarray):
        return checked(x, spec)
    check_shape(tuple(x.shape), spec)
    return x


def check_shape(shape: tuple[int, ...], spec: Spec) -> None:
    """Raise RestortError for a shape that the network does not take."""
    if len(shape) != 4 or shape[1] != spec.in_channels or 0 in shape:
        raise RestortError(f"this network takes arrays of shape (N, {spec.in_channels}, H, W), not {shape}")
    multiple = spec.size_multiple
    if shape[2] % multiple or shape[3] % multiple:
        raise RestortError(
            f"height and width must be multiples of {multiple}, not {shape[2]} x {shape[3]}; pad first"
        )


def closed(name: str) -> RestortError:
    """The error of a call after `close()`."""
    return RestortError(f"the {name} runner is closed; make a new one")


_NO_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "cannot allocate",
    "can't alloc",
    "failed to allocate",
    "not enough memory",
)
"""Parts of what the C++ libraries say where memory is short."""


def wants_memory(error: Exception) -> bool:
    """Return whether a library failed for lack of memory."""
    text = one_line(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def call_failed(library: str, shape: tuple[int, ...], error: Exception) -> RestortError:
    """The error of a library that failed on an array of `shape`: OutOfMemory where it wanted memory."""
    text = one_line(error)
    if wants_memory(error):
        return OutOfMemory(
            f"not enough memory for an array of shape {shape} in {library}; use smaller tiles (--tile)"
        )
    return RestortError(f"{library} failed on an array of shape {shape}: {text}; try smaller tiles (--tile)")


def one_line(error: Exception) -> str:
    """The first 200 characters of an error's message on one line."""
    return " ".join(str(error).split())[:200]
