"""The few CUDA calls that running an engine takes, through cuda-python: memory, copies, streams, events, graphs.

Pointers and handles are integers here. Every failing call raises RestortError, one sentence with the likely remedy;
OutOfMemory where the memory of the GPU is not enough, which smaller tiles may cure.
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
    """The module cuda.bindings.runtime (or cuda.cudart, as it was called before cuda-python 12.8).

    Raises RestortError where it is not installed or does not load.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reason = " ".join(str(error).split())[:120]
    raise RestortError(f"cuda-python is not here ({reason}); get it with: {REMEDY}")


def call(name: str, *arguments: Any) -> Any:
    """`cudaNAME(*arguments)`: what it gives besides the error code: nothing, one value, or a tuple."""
    module = runtime()
    code, *values = getattr(module, f"cuda{name}")(*arguments)
    if int(code) != 0:
        raise trouble(name, int(code), _words(module, code))
    return values[0] if len(values) == 1 else tuple(values) if values else None


def _words(module: Any, code: Any) -> str:
    try:
        text = module.cudaGetErrorString(code)[1]
        return (text.decode() if isinstance(text, bytes) else str(text)).strip()
    except Exception:  # the message is worth less than the error itself
        return str(code)


def trouble(name: str, code: int, words: str) -> RestortError:
    """The error of a CUDA call in one sentence."""
    if code == 2:
        return OutOfMemory("the memory of the GPU is not enough; use smaller tiles (--tile)")
    if code in (35, 803):
        return RestortError(
            f"the NVIDIA driver is too old for this cuda-python, or not there ({words}); install a newer driver, or an "
            "older one with: pip install 'cuda-python<13'"
        )
    if code in (100, 101, 38):
        return RestortError(f"no NVIDIA GPU can be used here ({words}); use another backend")
    if code in (46, 3, 4):
        return RestortError(f"the GPU is busy or cannot be started ({words}); see `nvidia-smi`")
    if code in (700, 710, 714, 715, 716, 717, 718, 719):
        return RestortError(
            f"the GPU stopped with an error ({words}); start again, and clear the engines "
            "(restort cache clear engines) if it comes back"
        )
    return RestortError(f"CUDA failed in {name} (error {code}: {words}); see `nvidia-smi`")


class Buffer:
    """`size` bytes on the GPU; `pointer` is where, 0 for none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pointer = int(call("Malloc", size)) if size else 0

    def free(self) -> None:
        if self.pointer:
            call("Free", self.pointer)
            self.pointer = 0


class Pinned:
    """Host memory that the GPU copies from and to by itself; `array` is float32 of `shape`."""

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
    """A point in a stream; those with `timing` also say when it was reached."""

    def __init__(self, timing: bool = False) -> None:
        flags = runtime().cudaEventDefault if timing else runtime().cudaEventDisableTiming
        self.handle = call("EventCreateWithFlags", flags)

    def wait(self) -> None:
        """Until it is reached."""
        call("EventSynchronize", self.handle)

    def since(self, start: Event) -> float:
        """Milliseconds from `start` to this; both must have been reached."""
        return float(call("EventElapsedTime", start.handle, self.handle))

    def free(self) -> None:
        if self.handle is not None:
            call("EventDestroy", self.handle)
            self.handle = None


class Graph:
    """What a stream recorded between begin and end of a capture, ready to be launched as a whole."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def free(self) -> None:
        if self.handle is not None:
            call("GraphExecDestroy", self.handle)
            self.handle = None


class Stream:
    """Work in order; `number` is the handle as TensorRT takes it."""

    def __init__(self) -> None:
        self.handle = call("StreamCreateWithFlags", runtime().cudaStreamNonBlocking)
        self.number = int(self.handle)

    def upload(self, target: Buffer, source: Pinned) -> None:
        self._copy(target.pointer, source.pointer, source.size, "HostToDevice")

    def download(self, target: Pinned, source: Buffer) -> None:
        self._copy(target.pointer, source.pointer, target.size, "DeviceToHost")

    def copy(self, target: Buffer, source: Buffer, size: int) -> None:
        """From one place on the GPU to another."""
        self._copy(target.pointer, source.pointer, size, "DeviceToDevice")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(runtime().cudaMemcpyKind, f"cudaMemcpy{kind}")
        call("MemcpyAsync", target, source, size, direction, self.handle)

    def record(self, event: Event) -> None:
        call("EventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """What comes next in this stream waits for `event`; this thread does not."""
        call("StreamWaitEvent", self.handle, event.handle, 0)

    def launch(self, graph: Graph) -> None:
        call("GraphLaunch", graph.handle, self.handle)

    def begin_capture(self) -> None:
        # Thread-local: other threads may allocate meanwhile.
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
    """Bytes of the GPU's memory that nobody uses."""
    return int(call("MemGetInfo")[0])


def forget_error() -> None:
    """Clears an error that was dealt with, such as that of a capture that failed."""
    runtime().cudaGetLastError()
