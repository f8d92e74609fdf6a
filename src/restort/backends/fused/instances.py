"""Passes ready to run, one per shape: planned, compiled, captured in a CUDA graph, and kept in a bounded number.

An instance has its own stream, and enqueues everything on it under its lock. So calls from several threads follow one
another on the GPU, each with its own copies to and from the host, and no thread waits for the GPU while it holds the
lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from restort.backends.fused.forward_pass import Pass
from restort.errors import OutOfMemory
from restort.kernels.finite_check import triton as finite_check
from restort.kernels.precompile import missing, note, precompile, precompile_cuda

Tensor = Any
Shape = tuple[int, int, int]  # N, H, W
Notify = Callable[[str], None]

FEW = 3  # kernels that this process compiles without the help of others
_interpreter = threading.Lock()  # Triton's interpreter runs one kernel at a time
_making = threading.Lock()  # planning takes memory and a capture wants quiet: one at a time


class Instance:
    """One pass with the check of its output (restort.kernels.finite_check), whose result is in `flags`."""

    def __init__(self, plan: Callable[[], Pass], device: Any, notify: Notify) -> None:
        self.lock = threading.Lock() if device.type == "cuda" else _interpreter
        self._graph: Any = None
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        with _making, self.on_stream():  # memory taken on a stream is given out again in that stream's order
            made = plan()
            self._pass = made
            self.input, self.output, self.blocks = made.input, made.output, made.blocks
            if self.output.numel() > finite_check.LIMIT:
                raise OutOfMemory("result has more elements than 32-bit indices reach; use smaller tiles")
            count = finite_check.programs(self.output.numel())
            self.flags = torch.zeros(count, dtype=torch.int32, device=device)
            self.launches = [*made.launches, finite_check.launch(self.output, self.flags)]
            self.bytes = made.workspace.bytes + 4 * (self.input.numel() + self.output.numel())
            if self.stream is not None:
                self._prepare(device, notify)

    def _prepare(self, device: Any, notify: Notify) -> None:
        """Compile the kernels, run once, and capture the CUDA graph."""
        major, minor = torch.cuda.get_device_capability(device)
        lacking = missing(self.launches, 10 * major + minor)
        if len(lacking) > FEW:
            notify(
                f"compiling {len(lacking)} kernels for {torch.cuda.get_device_name(device)}; this is done once"
            )
            precompile(list(lacking.values()))
        precompile_cuda(self.launches, 10 * major + minor)
        self.input.zero_()
        self._all()
        self.stream.synchronize()
        note(list(lacking))
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating: that is an error only in the mode 'global'.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._all()
        self._graph = graph

    def _all(self) -> None:
        for launch in self.launches:
            launch()

    def launch(self) -> None:
        """Launch the whole pass on the current stream, which must be `stream`; the caller holds `lock`."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._all()

    def finish(self) -> None:
        """Wait for everything enqueued on the stream."""
        if self.stream is not None:
            self.stream.synchronize()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        if self.stream is None:
            yield
        else:
            with torch.cuda.stream(self.stream):
                yield


class Instances:
    """Instances of the last used shapes: at most `count` with at most `limit` bytes, but always the newest."""

    def __init__(self, make: Callable[[Shape], Instance], count: int, limit: int) -> None:
        self._make, self._count, self._limit = make, count, limit
        self._kept: OrderedDict[Shape, Instance] = OrderedDict()
        self._lock = threading.Lock()
        self._begun: dict[Shape, threading.Lock] = {}

    def get(self, shape: Shape) -> Instance:
        """Return the instance for a shape, made if it is new; other threads that want it wait for it."""
        with self._lock:
            if shape in self._kept:
                self._kept.move_to_end(shape)
                return self._kept[shape]
            turn = self._begun.setdefault(shape, threading.Lock())
        with turn:
            with self._lock:
                if shape in self._kept:
                    return self._kept[shape]
            try:
                made = self._make(shape)
            finally:
                with self._lock:
                    self._begun.pop(shape, None)
            leaving = []
            with self._lock:
                self._kept[shape] = made
                while len(self._kept) > self._count or (self.bytes > self._limit and len(self._kept) > 1):
                    leaving.append(self._kept.popitem(last=False)[1])
            for old in leaving:
                old.finish()
            return made

    @property
    def bytes(self) -> int:
        """Device memory of the kept instances."""
        return sum(instance.bytes for instance in self._kept.values())

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the kept instances, the least recently used first."""
        with self._lock:
            return tuple(self._kept)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
