"""An engine on the GPU: arrays in, arrays out, copies beside the computing, contexts and memory kept per shape.

A plan is opened once. Each shape that comes by gets a context (restort.backends.tensorrt.lane) and keeps it, with
its buffers and, from the second call on, a CUDA graph; all contexts share one block of scratch memory, which is
sound because everything computes in one stream. Two more streams bring inputs and take outputs away. A call is
`submit`, which returns at once, and `collect`, which waits: `stream` keeps two in flight, so that the copies of
one tile run while the one before it is computed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from restort.backends.tensorrt import cuda
from restort.backends.tensorrt.lane import Lane, Shape, Slot
from restort.errors import RestortError
from restort.runner import Array

if TYPE_CHECKING:
    from restort.backends.tensorrt.flavour import Flavour

SHAPES_KEPT = 4


class EngineRefused(RestortError):
    """The plan cannot be opened here: it is damaged, of another version, or for another GPU."""


@dataclass
class Ticket:
    """A call in flight."""

    lane: Lane
    slot: Slot


class Engine:
    """A plan, opened. Several threads may use it.

    plan        its bytes.
    use_graphs  record a CUDA graph for shapes that come back.
    jit         bytes of the runtime cache of an RTX engine, with the kernels compiled here before; `jit_cache()`
                gives them back, with those compiled since.

    Raises EngineRefused where the plan cannot be opened.
    """

    def __init__(
        self, flavour: Flavour, plan: bytes, *, use_graphs: bool = True, jit: bytes | None = None
    ) -> None:
        self.flavour = flavour
        self._lock = threading.RLock()
        self._lanes: OrderedDict[Shape, Lane] = OrderedDict()
        self._free_before = self._least_free = cuda.free_memory()
        self._engine, self._runtime = self._open(plan)
        self._config, self._jit = self._configure(jit)
        # RTX records graphs itself, once its kernels for the shape are there: a graph of ours would keep the
        # first, general ones.
        self.use_graphs = use_graphs and not hasattr(self._config, "cuda_graph_strategy")
        self._compute, self._up, self._down = cuda.Stream(), cuda.Stream(), cuda.Stream()
        self._scratch = cuda.Buffer(0)
        self._closed = False
        self._note_memory()

    def _open(self, plan: bytes) -> tuple[Any, Any]:
        with self.flavour.log.listening() as heard:
            runtime = self.flavour.module.Runtime(self.flavour.log.logger)
            engine = runtime.deserialize_cuda_engine(plan) if runtime is not None else None
        if engine is None:
            raise EngineRefused(str(heard.error("opening the engine")))
        return engine, runtime

    def _configure(self, jit: bytes | None) -> tuple[Any, Any]:
        """The configuration of contexts and the runtime cache, where the library has them."""
        module = self.flavour.module
        if not hasattr(self._engine, "create_runtime_config"):
            return None, None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = None
        if hasattr(config, "create_runtime_cache"):
            cache = config.create_runtime_cache()
            if jit:
                cache.deserialize(jit)  # False for one of another version: then it stays empty
            config.set_runtime_cache(cache)
        return config, cache

    def jit_cache(self) -> bytes | None:
        """What an RTX engine compiled for this GPU, to be given to the next one; None where there is no such."""
        if self._jit is None:
            return None
        with self._lock:
            kept = self._jit.serialize()
        return bytes(kept) if kept is not None else None

    def __call__(self, x: Array) -> Array:
        """x float32 (N, C, H, W), C-contiguous, of a size the engine takes -> float32, the caller's own."""
        ticket = self.submit(x)
        assert ticket is not None
        return self.collect(ticket)

    def stream(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """The results of `arrays` in their order; the next one is read and sent before one is waited for."""
        flying: deque[Ticket] = deque()
        try:
            for x in arrays:
                ticket = self.submit(x, wait=not flying)
                if ticket is None:  # other threads hold the rest: give back before taking more
                    while flying:
                        yield self.collect(flying.popleft())
                    ticket = self.submit(x)
                assert ticket is not None
                flying.append(ticket)
                if len(flying) > 1:
                    yield self.collect(flying.popleft())
            while flying:
                yield self.collect(flying.popleft())
        finally:
            while flying:  # nobody wants these any more
                self.collect(flying.popleft())

    def submit(self, x: Array, *, wait: bool = True) -> Ticket | None:
        """Starts a call. With `wait` False None is returned where it would have to wait for another to end."""
        with self._lock:
            lane = self._lane(x.shape)
            lane.users += 1
        try:
            slot = lane.take(wait)
        except BaseException:
            self._leave(lane)
            raise
        if slot is None:
            self._leave(lane)
            return None
        try:
            np.copyto(slot.host_in.array, x)
            with self._lock:
                self._check_open()
                self._up.upload(slot.device_in, slot.host_in)
                self._up.record(slot.uploaded)
                self._compute.wait_for(slot.uploaded)
                self._compute.copy(lane.input, slot.device_in, lane.input.size)
                self._run(lane)
                self._compute.copy(slot.device_out, lane.output, lane.output.size)
                self._compute.record(slot.computed)
                self._down.wait_for(slot.computed)
                self._down.download(slot.host_out, slot.device_out)
                self._down.record(slot.done)
        except BaseException:
            lane.give(slot)
            self._leave(lane)
            raise
        return Ticket(lane, slot)

    def collect(self, ticket: Ticket) -> Array:
        """Waits for a call and returns its result."""
        try:
            ticket.slot.done.wait()
            return np.array(ticket.slot.host_out.array)
        finally:
            ticket.lane.give(ticket.slot)
            self._leave(ticket.lane)

    def timer(self, x: Array) -> Callable[[], float]:
        """A function that computes `x` once and returns the GPU's milliseconds, copies not counted."""
        for _ in range(2):  # the second call records the graph
            self(x)
        start, end = cuda.Event(timing=True), cuda.Event(timing=True)

        def once() -> float:
            with self._lock:
                lane = self._lane(x.shape)
                self._compute.record(start)
                self._run(lane)
                self._compute.record(end)
                end.wait()
            return end.since(start)

        return once

    def with_context(self, x: Array, work: Callable[[Any, Callable[[], None]], None]) -> None:
        """Calls work(context, run) for x's shape; `run()` computes without a graph and waits, for profilers."""
        self(x)
        with self._lock:
            lane = self._lane(x.shape)

            def run() -> None:
                self._enqueue(lane)
                self._compute.synchronize()

            work(lane.context, run)

    def _run(self, lane: Lane) -> None:
        """Enqueues one computation of the lane's input; the lock is held."""
        if self.use_graphs and lane.graph is None and lane.calls == 1 and lane.capturable:
            lane.graph = self._capture(lane)
        if lane.graph is not None:
            self._compute.launch(lane.graph)
        else:
            self._enqueue(lane)
        lane.calls += 1
        if lane.calls == 1:  # what plugins and lazily loaded kernels take is taken by now
            self._note_memory()

    def _enqueue(self, lane: Lane) -> None:
        with self.flavour.log.listening() as heard:
            done = lane.context.execute_async_v3(self._compute.number)
        if not done:
            raise heard.error("running the engine")

    def _capture(self, lane: Lane) -> cuda.Graph | None:
        """The computation as a CUDA graph, None where it cannot be recorded; the first call has warmed it up."""
        self._compute.synchronize()
        try:
            self._compute.begin_capture()
        except RestortError:
            lane.capturable = False
            cuda.forget_error()
            return None
        try:
            self._enqueue(lane)
        except RestortError:
            lane.capturable = False
        try:
            graph = self._compute.end_capture()
        except RestortError:
            lane.capturable = False
            cuda.forget_error()
            return None
        if lane.capturable:
            return graph
        graph.free()
        return None

    def _lane(self, shape: tuple[int, ...]) -> Lane:
        """The context of x's shape, made if need be; the lock is held."""
        self._check_open()
        if shape in self._lanes:
            self._lanes.move_to_end(shape)
            return self._lanes[shape]
        self._forget(SHAPES_KEPT - 1)
        try:
            lane = self._new_lane(shape)
        except RestortError:
            # Memory, or a library that allows one context a profile (8.6 without profile sharing).
            if not self._lanes or self._forget(0):
                raise
            lane = self._new_lane(shape)
        self._lanes[shape] = lane
        self._note_memory()
        return lane

    def _new_lane(self, shape: Shape) -> Lane:
        lane = Lane(self.flavour, self._engine, self._config, shape, self._compute.number)
        try:
            if lane.scratch_bytes > self._scratch.size:
                self._compute.synchronize()
                self._scratch.free()
                self._scratch = cuda.Buffer(lane.scratch_bytes)
                for other in self._lanes.values():
                    other.use_scratch(self._scratch)
            lane.use_scratch(self._scratch)
            lane.allocate()
        except BaseException:
            lane.free()
            raise
        return lane

    def _forget(self, keep: int) -> int:
        """Frees contexts that nobody uses, the oldest first, until `keep` are left; how many are left too many."""
        idle = [shape for shape, lane in self._lanes.items() if not lane.users]
        too_many = len(self._lanes) - keep
        for shape in idle[: max(too_many, 0)]:
            self._compute.synchronize()
            self._lanes.pop(shape).free()
            too_many -= 1
        return max(too_many, 0)

    def _leave(self, lane: Lane) -> None:
        with self._lock:
            lane.users -= 1
            if self._closed and not lane.users:
                lane.free()

    def _check_open(self) -> None:
        if self._closed:
            raise RestortError("the tensorrt runner is closed; make a new one")

    def _note_memory(self) -> None:
        self._least_free = min(self._least_free, cuda.free_memory())

    def peak_bytes(self) -> int:
        """The GPU memory that was taken since this engine was opened; that of other programs is counted in."""
        return max(self._free_before - self._least_free, 0)

    def __del__(self) -> None:  # of an engine that a runner has let go while calls were under way
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for stream in (self._up, self._compute, self._down):
                stream.synchronize()
            for lane in self._lanes.values():
                if not lane.users:
                    lane.free()
            self._lanes.clear()
            self._scratch.free()
            for stream in (self._up, self._compute, self._down):
                stream.free()
            # The configuration and its cache belong to the engine, the engine to the runtime.
            self._jit = self._config = self._engine = self._runtime = None
