"""The CUDA calls that running an engine needs, through cuda-python: memory, copies, streams, events, graphs.

Pointers and handles are integers. A call that fails raises RestortError, one sentence with a remedy; OutOfMemory, which
smaller tiles may cure, where the GPU has too little memory.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from typing import Any

import numpy as np

from restort.errors import OutOfMemory, RestortError
from restort.runner import Array

REMEDY = "pip install cuda-python"


@functools.cache
def runtime() -> Any:
    """Import cuda.bindings.runtime, or cuda.cudart as before cuda-python 12.8.

    Raises RestortError where neither is installed or loads.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reason = " ".join(str(error).split())[:120]
    raise RestortError(f"cuda-python does not load ({reason}); get it with: {REMEDY}")


def call(name: str, *arguments: Any) -> Any:
    """Call `cudaNAME(*arguments)`; return what it gives besides the error code: None, one value, or a tuple."""
    module = runtime()
    code, *values = getattr(module, f"cuda{name}")(*arguments)
    if int(code) != 0:
        raise cuda_error(name, int(code), _message(module, code))
    return values[0] if len(values) == 1 else tuple(values) if values else None


def _message(module: Any, code: Any) -> str:
    try:
        text = module.cudaGetErrorString(code)[1]
        return (text.decode() if isinstance(text, bytes) else str(text)).strip()
    except Exception:  # the code alone will do
        return str(code)


def cuda_error(name: str, code: int, message: str) -> RestortError:
    """Make the error of a failed CUDA call, with a remedy by its code."""
    if code == 2:
        return OutOfMemory("out of GPU memory; use smaller tiles (--tile)")
    if code in (35, 803):
        return RestortError(
            f"the NVIDIA driver is absent or too old for this cuda-python ({message}); install a newer driver, or an "
            "older cuda-python with: pip install 'cuda-python<13'"
        )
    if code in (100, 101, 38):
        return RestortError(f"no usable NVIDIA GPU ({message}); use another --backend")
    if code in (46, 3, 4):
        return RestortError(f"the GPU is busy or cannot be initialised ({message}); see `nvidia-smi`")
    if code in (700, 710, 714, 715, 716, 717, 718, 719):
        return RestortError(
            f"the GPU stopped with an error ({message}); start again, and if it recurs, clear the engines with: "
            "restort cache clear engines"
        )
    return RestortError(f"CUDA call {name} failed (error {code}: {message}); see `nvidia-smi`")


class Buffer:
    """`size` bytes on the GPU, at `pointer`; 0 without bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pointer = int(call("Malloc", size)) if size else 0

    def free(self) -> None:
        if self.pointer:
            call("Free", self.pointer)
            self.pointer = 0


class Pinned:
    """Page-locked host memory, which the GPU copies asynchronously; `array` is float32 of `shape`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.size = 4 * int(np.prod(shape))
        self.pointer = int(call("HostAlloc", self.size, 0))
        memory: Any = (ctypes.c_byte * self.size).from_address(self.pointer)
        self.array: Array = np.frombuffer(memory, np.float32).reshape(shape)

    def free(self) -> None:
        if self.pointer:
            self.array = np.empty(0, np.float32)
            call("FreeHost", self.pointer)
            self.pointer = 0


class Event:
    """A point in a stream; with `timing` its time can be read."""

    def __init__(self, timing: bool = False) -> None:
        flags = runtime().cudaEventDefault if timing else runtime().cudaEventDisableTiming
        self.handle = call("EventCreateWithFlags", flags)

    def wait(self) -> None:
        """Block until it is reached."""
        call("EventSynchronize", self.handle)

    def since(self, start: Event) -> float:
        """Milliseconds from `start` to this; both must be reached."""
        return float(call("EventElapsedTime", start.handle, self.handle))

    def free(self) -> None:
        if self.handle is not None:
            call("EventDestroy", self.handle)
            self.handle = None


class Graph:
    """An instantiated CUDA graph: what a stream captured, launched as a whole."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def free(self) -> None:
        if self.handle is not None:
            call("GraphExecDestroy", self.handle)
            self.handle = None


class Stream:
    """A CUDA stream; `number` is its handle as TensorRT takes it."""

    def __init__(self) -> None:
        self.handle = call("StreamCreateWithFlags", runtime().cudaStreamNonBlocking)
        self.number = int(self.handle)

    def upload(self, target: Buffer, source: Pinned) -> None:
        self._copy(target.pointer, source.pointer, source.size, "HostToDevice")

    def download(self, target: Pinned, source: Buffer) -> None:
        self._copy(target.pointer, source.pointer, target.size, "DeviceToHost")

    def copy(self, target: Buffer, source: Buffer, size: int) -> None:
        """Copy from one place on the GPU to another."""
        self._copy(target.pointer, source.pointer, size, "DeviceToDevice")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(runtime().cudaMemcpyKind, f"cudaMemcpy{kind}")
        call("MemcpyAsync", target, source, size, direction, self.handle)

    def record(self, event: Event) -> None:
        call("EventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Make later work of this stream wait for `event`; the calling thread does not wait."""
        call("StreamWaitEvent", self.handle, event.handle, 0)

    def launch(self, graph: Graph) -> None:
        call("GraphLaunch", graph.handle, self.handle)

    def begin_capture(self) -> None:
        # thread-local: other threads may allocate during the capture
        mode = runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("StreamBeginCapture", self.handle, mode)

    def end_capture(self) -> Graph:
        captured = call("StreamEndCapture", self.handle)
        try:
            return Graph(call("GraphInstantiate", captured, 0))
        finally:
            call("GraphDestroy", captured)

    def synchronize(self) -> None:
        call("StreamSynchronize", self.handle)

    def free(self) -> None:
        if self.handle is not None:
            call("StreamDestroy", self.handle)
            self.handle = None


def free_memory() -> int:
    """Free bytes of the GPU's memory."""
    return int(call("MemGetInfo")[0])


def forget_error() -> None:
    """Clear the last error after it was handled, such as that of a failed capture."""
    runtime().cudaGetLastError()
