"""An engine on the GPU: arrays in, arrays out, copies that overlap the computing, contexts and memory kept by shape.

Each shape of input gets a ShapeContext and keeps it, with its buffers and, from the second call on, a CUDA graph. All
contexts share one block of scratch memory, which is safe because everything computes in one stream. Two more streams
upload inputs and download outputs. A call is `submit`, which returns at once, and `collect`, which waits: `stream`
keeps two calls in flight, so that the copies of one tile run while the tile before it is computed.
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
from restort.backends.tensorrt.context import IOBuffers, Shape, ShapeContext
from restort.backends.tensorrt.library import create_runtime
from restort.errors import RestortError
from restort.runner import Array

if TYPE_CHECKING:
    from restort.backends.tensorrt.library import Flavour

SHAPES_KEPT = 4


class EngineRefused(RestortError):
    """The engine cannot be opened here: it is damaged, of another version, or for another GPU."""


@dataclass
class InFlight:
    """A call that was submitted and not yet collected."""

    context: ShapeContext
    buffers: IOBuffers


class Engine:
    """An opened engine. Several threads may use it.

    plan        the serialized engine
    use_graphs  capture a CUDA graph for shapes that recur
    jit         for RTX, the runtime cache: kernels compiled on this machine before. `jit_cache()` returns them with
                those compiled since.
    host_code   the engine is version-compatible and brings a runtime of its own, which may run. That runtime may be
                older than the functions for scratch memory, so each context has memory of its own.

    Raises EngineRefused where the engine cannot be opened.
    """

    def __init__(
        self,
        flavour: Flavour,
        plan: bytes,
        *,
        use_graphs: bool = True,
        jit: bytes | None = None,
        host_code: bool = False,
    ) -> None:
        self.flavour = flavour
        self._lock = threading.RLock()
        self._contexts: OrderedDict[Shape, ShapeContext] = OrderedDict()
        self._free_before = self._least_free = cuda.free_memory()
        self._engine, self._runtime = self._open(plan, host_code)
        self._own_memory = host_code
        self._config, self._jit = self._configure(jit)
        # RTX captures graphs itself, once its kernels for the shape are compiled; a graph of ours would keep the
        # general kernels of the first calls.
        self.use_graphs = use_graphs and not hasattr(self._config, "cuda_graph_strategy")
        self._compute, self._up, self._down = cuda.Stream(), cuda.Stream(), cuda.Stream()
        self._scratch = cuda.Buffer(0)
        self._closed = False
        self._note_memory()

    def _open(self, plan: bytes, host_code: bool) -> tuple[Any, Any]:
        runtime = create_runtime(self.flavour, host_code)
        with self.flavour.logger.capture() as captured:
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineRefused(str(captured.error("opening the engine")))
        return engine, runtime

    def _configure(self, jit: bytes | None) -> tuple[Any, Any]:
        """Make the runtime config of contexts and the runtime cache, where the library has them."""
        module = self.flavour.module
        if self._own_memory or not hasattr(self._engine, "create_runtime_config"):
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
                cache.deserialize(jit)  # False for one of another version: the cache then stays empty
            config.set_runtime_cache(cache)
        return config, cache

    def jit_cache(self) -> bytes | None:
        """The kernels that an RTX engine compiled for this GPU, for the next process; None for other libraries."""
        if self._jit is None:
            return None
        with self._lock:
            data = self._jit.serialize()
        return bytes(data) if data is not None else None

    def __call__(self, x: Array) -> Array:
        """x float32 (N, C, H, W), C-contiguous, of a size the engine takes -> float32, owned by the caller."""
        call = self.submit(x)
        assert call is not None
        return self.collect(call)

    def stream(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """Yield the results of `arrays` in order; the next array is read and submitted before a result is awaited."""
        calls: deque[InFlight] = deque()
        try:
            for x in arrays:
                call = self.submit(x, wait=not calls)
                if call is None:  # other threads hold all buffers: give ours back before taking more
                    while calls:
                        yield self.collect(calls.popleft())
                    call = self.submit(x)
                assert call is not None
                calls.append(call)
                if len(calls) > 1:
                    yield self.collect(calls.popleft())
            while calls:
                yield self.collect(calls.popleft())
        finally:
            while calls:  # the caller has left
                self.collect(calls.popleft())

    def submit(self, x: Array, *, wait: bool = True) -> InFlight | None:
        """Start a call. Without `wait`, return None where all buffers of the shape are taken."""
        with self._lock:
            context = self._context(x.shape)
            context.users += 1
        try:
            buffers = context.take(wait)
        except BaseException:
            self._leave(context)
            raise
        if buffers is None:
            self._leave(context)
            return None
        try:
            np.copyto(buffers.host_in.array, x)
            with self._lock:
                self._check_open()
                self._up.upload(buffers.device_in, buffers.host_in)
                self._up.record(buffers.uploaded)
                self._compute.wait_for(buffers.uploaded)
                self._compute.copy(context.input, buffers.device_in, context.input.size)
                self._run(context)
                self._compute.copy(buffers.device_out, context.output, context.output.size)
                self._compute.record(buffers.computed)
                self._down.wait_for(buffers.computed)
                self._down.download(buffers.host_out, buffers.device_out)
                self._down.record(buffers.done)
        except BaseException:
            context.give_back(buffers)
            self._leave(context)
            raise
        return InFlight(context, buffers)

    def collect(self, call: InFlight) -> Array:
        """Wait for a call and return its result."""
        try:
            call.buffers.done.wait()
            return np.array(call.buffers.host_out.array)
        finally:
            call.context.give_back(call.buffers)
            self._leave(call.context)

    def timer(self, x: Array) -> Callable[[], float]:
        """Return a function that computes `x` once and returns the GPU's milliseconds, without copies."""
        for _ in range(2):  # the second call captures the graph
            self(x)
        start, end = cuda.Event(timing=True), cuda.Event(timing=True)

        def once() -> float:
            with self._lock:
                context = self._context(x.shape)
                self._compute.record(start)
                self._run(context)
                self._compute.record(end)
                end.wait()
            return end.since(start)

        return once

    def with_context(self, x: Array, work: Callable[[Any, Callable[[], None]], None]) -> None:
        """Call work(execution context, run) for x's shape; `run()` computes without a graph and waits (profilers)."""
        self(x)
        with self._lock:
            context = self._context(x.shape)

            def run() -> None:
                self._enqueue(context)
                self._compute.synchronize()

            work(context.context, run)

    def _run(self, context: ShapeContext) -> None:
        """Enqueue one computation of the context's input; the lock is held."""
        if self.use_graphs and context.graph is None and context.calls == 1 and context.capturable:
            context.graph = self._capture(context)
        if context.graph is not None:
            self._compute.launch(context.graph)
        else:
            self._enqueue(context)
        context.calls += 1
        if context.calls == 1:  # plugins and lazily loaded kernels have taken their memory by now
            self._note_memory()

    def _enqueue(self, context: ShapeContext) -> None:
        with self.flavour.logger.capture() as captured:
            done = context.context.execute_async_v3(self._compute.number)
        if not done:
            raise captured.error("running the engine")

    def _capture(self, context: ShapeContext) -> cuda.Graph | None:
        """Capture the computation as a CUDA graph, after a first call; None where that fails."""
        self._compute.synchronize()
        try:
            self._compute.begin_capture()
        except RestortError:
            context.capturable = False
            cuda.forget_error()
            return None
        try:
            self._enqueue(context)
        except RestortError:
            context.capturable = False
        try:
            graph = self._compute.end_capture()
        except RestortError:
            context.capturable = False
            cuda.forget_error()
            return None
        if context.capturable:
            return graph
        graph.free()
        return None

    def _context(self, shape: Shape) -> ShapeContext:
        """Return the context of a shape, made if absent; the lock is held."""
        self._check_open()
        if shape in self._contexts:
            self._contexts.move_to_end(shape)
            return self._contexts[shape]
        self._forget(SHAPES_KEPT - 1)
        try:
            context = self._new_context(shape)
        except RestortError:
            # Too little memory, or a library that allows one context a profile (8.6 without profile sharing).
            if not self._contexts or self._forget(0):
                raise
            context = self._new_context(shape)
        self._contexts[shape] = context
        self._note_memory()
        return context

    def _new_context(self, shape: Shape) -> ShapeContext:
        context = ShapeContext(
            self.flavour, self._engine, self._config, shape, self._compute.number, self._own_memory
        )
        try:
            if context.scratch_bytes > self._scratch.size:
                self._compute.synchronize()
                self._scratch.free()
                self._scratch = cuda.Buffer(context.scratch_bytes)
                for other in self._contexts.values():
                    other.use_scratch(self._scratch)
            context.use_scratch(self._scratch)
            context.allocate()
        except BaseException:
            context.free()
            raise
        return context

    def _forget(self, keep: int) -> int:
        """Free unused contexts, the oldest first, until `keep` are left; return how many more are left."""
        idle = [shape for shape, context in self._contexts.items() if not context.users]
        too_many = len(self._contexts) - keep
        for shape in idle[: max(too_many, 0)]:
            self._compute.synchronize()
            self._contexts.pop(shape).free()
            too_many -= 1
        return max(too_many, 0)

    def _leave(self, context: ShapeContext) -> None:
        with self._lock:
            context.users -= 1
            if self._closed and not context.users:
                context.free()

    def _check_open(self) -> None:
        if self._closed:
            raise RestortError("the tensorrt runner is closed; make a new one")

    def _note_memory(self) -> None:
        self._least_free = min(self._least_free, cuda.free_memory())

    def peak_bytes(self) -> int:
        """The GPU memory taken since this engine was opened, by other programs, too."""
        return max(self._free_before - self._least_free, 0)

    def __del__(self) -> None:  # a runner may drop an engine while calls are under way
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for stream in (self._up, self._compute, self._down):
                stream.synchronize()
            for context in self._contexts.values():
                if not context.users:
                    context.free()
            self._contexts.clear()
            self._scratch.free()
            for stream in (self._up, self._compute, self._down):
                stream.free()
            # The config and its cache belong to the engine, the engine to the runtime.
            self._jit = self._config = self._engine = self._runtime = None
