"""An execution context for one shape of input, with its buffers."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, TypeAlias

from restort.backends.tensorrt import cuda
from restort.errors import RestortError

if TYPE_CHECKING:
    from restort.backends.tensorrt.library import Flavour

Shape: TypeAlias = tuple[int, ...]

INPUT, OUTPUT = "input", "output"
LEAST_SCRATCH = 256  # bytes: an engine of a plugin alone asks for 0, and TensorRT may refuse the address 0
BUFFERS = 2  # calls of one shape in flight: one computes while the copies of the other run


class IOBuffers:
    """The buffers of one call in flight, in pinned and device memory, and the events between its streams."""

    def __init__(self, input_shape: Shape, output_shape: Shape) -> None:
        self._parts: list[Any] = []
        try:
            self.host_in = self._keep(cuda.Pinned(input_shape))
            self.host_out = self._keep(cuda.Pinned(output_shape))
            self.device_in = self._keep(cuda.Buffer(self.host_in.size))
            self.device_out = self._keep(cuda.Buffer(self.host_out.size))
            self.uploaded, self.computed, self.done = (self._keep(cuda.Event()) for _ in range(3))
        except BaseException:
            self.free()
            raise

    def _keep(self, part: Any) -> Any:
        self._parts.append(part)
        return part

    def free(self) -> None:
        while self._parts:
            self._parts.pop().free()


class ShapeContext:
    """An execution context of `engine` for inputs of `shape`; Engine makes it, under its lock.

    stream      handle of the stream that computes
    calls       computations so far
    graph       the CUDA graph captured of one computation, or None
    capturable  whether a capture may be tried
    users       calls under way
    own_memory  the library allocates its scratch memory; `scratch_bytes` is 0
    """

    def __init__(
        self,
        flavour: Flavour,
        engine: Any,
        config: Any,
        shape: Shape,
        stream: int,
        own_memory: bool = False,
    ) -> None:
        self.shape, self.own_memory = shape, own_memory
        self.calls = self.users = 0
        self.capturable = True
        self.graph: cuda.Graph | None = None
        self._engine = engine
        self._buffers: list[IOBuffers] = []
        self._free: queue.SimpleQueue[IOBuffers] = queue.SimpleQueue()
        self.input = self.output = cuda.Buffer(0)
        with flavour.logger.capture() as captured:
            self.context = (
                engine.create_execution_context()
                if own_memory
                else _create_context(flavour.module, engine, config)
            )
            if self.context is None:
                raise captured.error("preparing the engine")
            # Before TensorRT 10 only the first context of an engine has a profile by default.
            index = _profile_of(engine, shape)
            if getattr(self.context, "active_optimization_profile", 0) != index and not (
                self.context.set_optimization_profile_async(index, stream)
            ):
                raise captured.error("preparing the engine")
            if not self.context.set_input_shape(INPUT, shape):
                raise RestortError(
                    f"the engine does not take an input of {'x'.join(map(str, shape))} "
                    f"({captured.error('setting it')})"
                )
            self.output_shape = tuple(int(n) for n in self.context.get_tensor_shape(OUTPUT))
            self.scratch_bytes = 0 if own_memory else max(_scratch_bytes(engine, self.context), LEAST_SCRATCH)

    def allocate(self) -> None:
        """Allocate its buffers."""
        self._buffers = [IOBuffers(self.shape, self.output_shape) for _ in range(BUFFERS)]
        for buffers in self._buffers:
            self._free.put(buffers)
        self.input = cuda.Buffer(self._buffers[0].host_in.size)
        self.output = cuda.Buffer(self._buffers[0].host_out.size)
        self.context.set_tensor_address(INPUT, self.input.pointer)
        self.context.set_tensor_address(OUTPUT, self.output.pointer)

    def use_scratch(self, scratch: cuda.Buffer) -> None:
        """Set the memory for intermediate values; a graph captured with other memory is discarded."""
        if self.own_memory:
            return
        if self.graph is not None:
            self.graph.free()
            self.graph, self.calls = None, 0
        if hasattr(self.context, "set_device_memory"):
            self.context.set_device_memory(scratch.pointer, scratch.size)
        else:
            self.context.device_memory = scratch.pointer

    def take(self, wait: bool) -> IOBuffers | None:
        """Take free buffers; where there are none, wait, or return None without `wait`."""
        try:
            return self._free.get(block=wait)
        except queue.Empty:
            return None

    def give_back(self, buffers: IOBuffers) -> None:
        self._free.put(buffers)

    def free(self) -> None:
        if self.graph is not None:
            self.graph.free()
        self.context = self.graph = None
        while self._buffers:
            self._buffers.pop().free()
        self.input.free()
        self.output.free()


def _create_context(module: Any, engine: Any, config: Any) -> Any:
    """Create a context that computes in scratch memory of ours, by the name that the version has for it."""
    if config is not None:
        return engine.create_execution_context(config)
    if hasattr(engine, "create_execution_context_without_device_memory"):
        return engine.create_execution_context_without_device_memory()
    return engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)


def _profile_of(engine: Any, shape: Shape) -> int:
    """The first optimization profile that takes an input of `shape`; 0 where none does."""
    for index in range(engine.num_optimization_profiles):
        least, _, most = engine.get_tensor_profile_shape(INPUT, index)
        if all(low <= n <= high for low, n, high in zip(least, shape, most)):
            return index
    return 0


def _scratch_bytes(engine: Any, context: Any) -> int:
    """Scratch memory for the context's shape; before TensorRT 10, for the largest shape of the engine."""
    if hasattr(context, "update_device_memory_size_for_shapes"):
        return int(context.update_device_memory_size_for_shapes())
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)
