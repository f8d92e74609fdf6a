"""What every backend gives: a Runner, arrays in and arrays out, and a word on whether it works here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError
from restort.models.spec import Spec

Array: TypeAlias = npt.NDArray[Any]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "tf32", "mixed"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "tf32", "mixed")


class Runner(Protocol):
    """One network, ready to run on arrays; made by `restort.backends.registry.create`.

    `runner(x)`: x float32 (N, C, H, W) in [0, 1], H and W multiples of `spec.size_multiple`; the result is
    float32 (N, C', H * scale, W * scale), C-contiguous, on the same scale and not clipped, and belongs to the
    caller. Several threads may call one runner. `close()` frees what it holds; it may be called twice.

    A call raises restort.errors.OutOfMemory (or any MemoryError) where the array is too large for the memory, and
    works on for smaller ones. A runner may also have
        tile_memory()   (bytes that a picture may take now, bytes per pixel of the input), where its memory is not
                        the computer's
        warn, say       functions that are told, in a sentence, what the user should know
    and what restort.profiling.bench, .block_outputs and restort.inference.exact ask for.
    """

    name: str
    precision: str
    spec: Spec

    def __call__(self, x: Array) -> Array: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class BackendStatus:
    """One backend on this machine: `works` where a network could be run now, else `reason` and `remedy`."""

    name: str
    installed: bool
    works: bool
    version: str | None
    precisions: tuple[str, ...]
    reason: str | None
    remedy: str | None


def checked(x: Array, spec: Spec) -> Array:
    """`x` as float32, C-contiguous; RestortError where its shape is not one the network takes."""
    check_shape(tuple(x.shape), spec)
    return np.ascontiguousarray(x, np.float32)


def check_shape(shape: tuple[int, ...], spec: Spec) -> None:
    """Raises RestortError for a shape of arrays that the network does not take."""
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


def one_line(error: Exception) -> str:
    """The beginning of a library's message, without line breaks."""
    return " ".join(str(error).split())[:200]
