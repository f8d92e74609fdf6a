"""The GPU that a plan is for: its compute capability and number of SMs, of this machine or of another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

H100 = (90, 132)  # compute capability 9.0 and 132 SMs: the target where there is no GPU to ask
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
"""Shared memory of one block at most, by compute capability (CUDA C++ Programming Guide, technical specifications)."""

_elsewhere: ContextVar[tuple[int, int] | None] = ContextVar("elsewhere", default=None)


def gpu_target(device: Any) -> tuple[int, int]:
    """Return (compute capability, number of SMs) of a torch.device or, inside `planning_for`, of that GPU.

    The compute capability is 90 for 9.0.
    """
    target = _elsewhere.get()
    if target is not None:
        return target
    if device.type != "cuda":
        return H100
    import torch

    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


@contextlib.contextmanager
def planning_for(capability: int, num_sms: int = 132) -> Iterator[None]:
    """Make plans for a GPU of this compute capability, wherever their arrays are."""
    token = _elsewhere.set((capability, num_sms))
    try:
        yield
    finally:
        _elsewhere.reset(token)


def shared_memory_limit(capability: int) -> int:
    """Return the bytes of shared memory that one block may have."""
    return SHARED_KIB.get(capability, 99) << 10


def can_compile_cuda(device: Any) -> bool:
    """Return whether a plan on `device`, a torch.device, may name kernels in CUDA C++ (restort.kernels.nvrtc).

    On a GPU that needs NVRTC. 'meta' has no memory, so nothing is run. On the CPU Triton's interpreter runs the plan,
    which cannot run CUDA C++, unless the plan is for a GPU elsewhere.
    """
    if device.type == "cuda":
        from restort.kernels.nvrtc import available

        return available()
    return bool(device.type == "meta" or _elsewhere.get() is not None)
