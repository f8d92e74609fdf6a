"""A fake cuda.bindings.runtime: memory is of this process, and streams are queues that run late.

Work in a stream runs only when someone waits; then streams take turns at random, ordered by events alone. A copy or a
computation that does not wait for an event it needs reads fresh memory, which is full of NaN, and the test fails.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

Operation = Callable[[], bool]  # False: not yet, an event is missing


@dataclass
class FakeStream:
    waiting: list[Operation] = field(default_factory=list)
    captured: list[Operation] | None = None


@dataclass
class FakeEvent:
    asked: int = 0  # how often it was put into a stream, and how often that point has been reached
    reached: int = 0


class FakeCuda:
    """`calls` counts the calls by name; `memory` limits what may be allocated on the device."""

    cudaEventDefault, cudaEventDisableTiming, cudaStreamNonBlocking = 0, 2, 1

    def __init__(self, seed: int = 0, memory: int = 1 << 30) -> None:
        self.calls: Counter[str] = Counter()
        self.memory, self.used = memory, 0
        self.fail: dict[str, int] = {}  # name -> error code of its next call
        self.blocks: dict[int, np.ndarray] = {}
        self.pinned: set[int] = set()
        self.handles: dict[int, Any] = {}
        self._lock = threading.RLock()
        self._random = random.Random(seed)
        names = ("HostToDevice", "DeviceToHost", "DeviceToDevice")
        self.cudaMemcpyKind = SimpleNamespace(**{f"cudaMemcpy{name}": name for name in names})
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        function = object.__getattribute__(self, f"_{name[4:]}")

        def counted(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls[name[4:]] += 1
                code = self.fail.pop(name[4:], 0)
                if code:
                    if name == "cudaStreamEndCapture":  # it ends all the same
                        self.handles[arguments[0]].captured = None
                    return code, None
                result = function(*arguments)
                if isinstance(result, tuple):
                    return result
                return (0,) if result is None else (0, result)

        return counted

    def _GetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, f"error number {code}".encode()

    def _GetLastError(self) -> None:
        pass

    def _Malloc(self, size: int) -> Any:
        if self.used + size > self.memory:
            return 2, None
        self.used += size
        return self._block(size)

    def _block(self, size: int) -> int:
        block = np.full(-(-size // 4), np.nan, np.float32)
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def _Free(self, pointer: int) -> None:
        assert not any(stream.waiting for stream in self._streams()), (
            "memory is freed while work is under way"
        )
        self.used -= self.blocks.pop(pointer).nbytes

    def _HostAlloc(self, size: int, flags: int) -> int:
        pointer = self._block(size)
        self.pinned.add(pointer)
        return pointer

    def _FreeHost(self, pointer: int) -> None:
        self.pinned.remove(pointer)
        del self.blocks[pointer]

    def _MemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.memory - self.used, self.memory

    def _new(self, thing: Any) -> int:
        handle = len(self.handles) + self.calls.total() + 1000
        self.handles[handle] = thing
        return handle

    def _streams(self) -> list[FakeStream]:
        return [thing for thing in self.handles.values() if isinstance(thing, FakeStream)]

    def _StreamCreateWithFlags(self, flags: int) -> int:
        return self._new(FakeStream())

    def _StreamDestroy(self, handle: int) -> None:
        del self.handles[handle]

    def _EventCreateWithFlags(self, flags: int) -> int:
        return self._new(FakeEvent())

    def _EventDestroy(self, handle: int) -> None:
        del self.handles[handle]

    def put(self, handle: int, operation: Operation) -> None:
        """Adds to a stream, or to what it is recording."""
        stream = self.handles[handle]
        (stream.waiting if stream.captured is None else stream.captured).append(operation)

    def _MemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> Any:
        on_host = (target in self.pinned, source in self.pinned)
        expected = {
            (False, True): "HostToDevice",
            (True, False): "DeviceToHost",
            (False, False): "DeviceToDevice",
        }
        assert expected[on_host] == kind
        assert min(self.blocks[target].nbytes, self.blocks[source].nbytes) >= size

        def copy() -> bool:
            ctypes.memmove(target, source, size)
            return True

        self.put(stream, copy)

    def _EventRecord(self, handle: int, stream: int) -> None:
        event = self.handles[handle]
        event.asked += 1

        def reach() -> bool:
            event.reached += 1
            return True

        self.put(stream, reach)

    def _StreamWaitEvent(self, stream: int, handle: int, flags: int) -> None:
        event = self.handles[handle]
        wanted = event.asked
        self.put(stream, lambda: event.reached >= wanted)

    def _EventSynchronize(self, handle: int) -> None:
        event = self.handles[handle]
        wanted = event.asked
        self._work(lambda: event.reached >= wanted)

    def _EventElapsedTime(self, start: int, end: int) -> float:
        assert self.handles[start].reached and self.handles[end].reached
        return 1.5

    def _StreamSynchronize(self, handle: int) -> None:
        stream = self.handles[handle]
        self._work(lambda: not stream.waiting)

    def _work(self, is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            busy = [stream for stream in self._streams() if stream.waiting]
            self._random.shuffle(busy)
            moved = False
            for stream in busy:
                if stream.waiting[0]():
                    stream.waiting.pop(0)
                    moved = True
                    break
            assert moved, "the streams wait for one another"

    def _StreamBeginCapture(self, handle: int, mode: int) -> None:
        assert self.handles[handle].captured is None
        self.handles[handle].captured = []

    def _StreamEndCapture(self, handle: int) -> int:
        stream = self.handles[handle]
        recorded, stream.captured = stream.captured, None
        return self._new(recorded)

    def _GraphInstantiate(self, handle: int, flags: int) -> int:
        return self._new(list(self.handles[handle]))

    def _GraphDestroy(self, handle: int) -> None:
        del self.handles[handle]

    def _GraphExecDestroy(self, handle: int) -> None:
        assert not any(stream.waiting for stream in self._streams()), (
            "a graph is freed while work is under way"
        )
        del self.handles[handle]

    def _GraphLaunch(self, handle: int, stream: int) -> None:
        for operation in self.handles[handle]:
            self.put(stream, operation)
