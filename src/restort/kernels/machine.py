"""What plans ask about the GPU: its compute capability and its multiprocessors, or those of a GPU that is elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

H100 = (90, 132)  # compute capability 9.0, multiprocessors: where there is no GPU to ask
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
"""Shared memory of one block at most, by compute capability (CUDA C++ Programming Guide, technical specifications)."""

_elsewhere: ContextVar[tuple[int, int] | None] = ContextVar("elsewhere", default=None)


def machine(device: Any) -> tuple[int, int]:
    """(compute capability, 90 for 9.0; multiprocessors) of a torch.device."""
    given = _elsewhere.get()
    if given is not None:
        return given
    if device.type != "cuda":
        return H100
    import torch

    found = torch.cuda.get_device_properties(device)
    return found.major * 10 + found.minor, found.multi_processor_count


@contextlib.contextmanager
def planning_for(capability: int, processors: int = 132) -> Iterator[None]:
    """Plans made meanwhile are for that GPU, wherever their arrays are."""
    token = _elsewhere.set((capability, processors))
    try:
        yield
    finally:
        _elsewhere.reset(token)


def compiles(device: Any) -> bool:
    """Whether a plan on `device`, a torch.device, may name kernels in CUDA C++ (restort.kernels.cuda).

    On a GPU, where they can be compiled here; without memory ('meta') always; on the CPU, where Triton's interpreter
    would have to run them, only if the plan is for a GPU elsewhere.
    """
    if device.type == "cuda":
        from restort.kernels.cuda import available

        return available()
    return bool(device.type == "meta" or _elsewhere.get() is not None)
