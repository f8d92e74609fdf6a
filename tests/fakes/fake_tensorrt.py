"""A fake TensorRT: an engine is a small JSON and computes a NumPy function in a stream of FakeCuda.

The result is the input enlarged by repetition, plus what "plus" says; "behaves" makes it misbehave.
"""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from restort.errors import RestortError
from tests.fakes.fake_cuda import FakeCuda


def plan(
    scale: int = 2, least: tuple[int, ...] = (1, 1, 8, 8), most: tuple[int, ...] = (4, 9, 64, 64), **more: Any
) -> bytes:
    """An engine; `compatible`: it runs in any version that allows host code.

    `behaves`: 'nan' gives NaN, 'fails' is not enqueued, 'uncapturable' not while a graph is recorded.
    """
    return json.dumps(
        {"scale": scale, "min": least, "max": most, "plus": 0.0, "behaves": "", **more}
    ).encode()


def enlarged(x: np.ndarray) -> np.ndarray:
    """What an engine of scale 2 makes of x."""
    return x.repeat(2, 2).repeat(2, 3)


class CapturedMessages:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def errors(self) -> list[str]:
        return self.lines

    def error(self, doing: str) -> RestortError:
        return RestortError(f"TensorRT failed while {doing}: {'; '.join(self.lines) or 'without a message'}")


class Logger:
    """A short restort.backends.tensorrt.logger.Logger."""

    ilogger = None

    def __init__(self) -> None:
        self.captured = CapturedMessages()

    @contextlib.contextmanager
    def capture(self) -> Iterator[CapturedMessages]:
        self.captured = CapturedMessages()
        yield self.captured


class Context:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.device_memory: int | None = 0  # None: the engine's own
        taken = any(other.active_optimization_profile == 0 for other in engine.alive)
        self.active_optimization_profile = -1 if taken else 0
        engine.alive.add(self)
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        fits = all(a <= n <= b for a, n, b in zip(least, shape, most))
        if fits:
            self.shape = shape
        else:
            self.engine.logger.captured.lines.append("the shape is not in the profile")
        return fits

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not self.engine.about.get("sharing", True):
            return False
        self.active_optimization_profile = index
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, c, h, w = self.shape
        scale = self.engine.about["scale"]
        return (n, c, h * scale, w * scale)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        about, cuda = self.engine.about, self.engine.cuda
        capturing = cuda.handles[stream].captured is not None
        if about["behaves"] == "fails" or (about["behaves"] == "uncapturable" and capturing):
            self.engine.logger.captured.lines.append("a kernel failed")
            return False
        self.engine.enqueued += 1
        if self.profiler is not None:
            self.profiler.report_layer_time("conv_1", 0.25)
            self.profiler.report_layer_time("{ForeignNode[a...b]} myelin", 0.75)
        source, target = (cuda.blocks[self.addresses[name]] for name in ("input", "output"))
        assert self.device_memory is None or self.device_memory in cuda.blocks
        shape, result = self.shape, self.get_tensor_shape("output")

        def compute() -> bool:
            x = source[: int(np.prod(shape))].reshape(shape)
            y = x.repeat(about["scale"], 2).repeat(about["scale"], 3) + np.float32(about["plus"])
            if about["behaves"] == "nan":
                y[0, 0, 0, 0] = np.nan
            target[: int(np.prod(result))] = y.reshape(-1)
            return True

        cuda.put(stream, compute)
        return True


class IProfiler:
    pass


class FakeEngine:
    """`others` in the plan are (N, C, H, W) of further profiles, of any number of channels up to C."""

    device_memory_size = 4096

    def __init__(self, about: dict[str, Any], cuda: FakeCuda, logger: Logger) -> None:
        self.about, self.cuda, self.logger = about, cuda, logger
        self.enqueued = 0
        self.contexts = 0
        self.alive: weakref.WeakSet[Context] = weakref.WeakSet()

    @property
    def num_optimization_profiles(self) -> int:
        return 1 + len(self.about.get("others", ()))

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert name == "input" and index >= 0
        if index == 0:
            return [tuple(self.about["min"]), tuple(self.about["max"]), tuple(self.about["max"])]
        n, c, h, w = self.about["others"][index - 1]
        return [(n, 1, h, w), (n, c, h, w), (n, c, h, w)]

    def create_execution_context(self) -> Context | None:
        found = self.create_execution_context_without_device_memory()
        if found is not None:
            found.device_memory = None
        return found

    def create_execution_context_without_device_memory(self) -> Context | None:
        self.contexts += 1
        return Context(self)


def flavour(cuda: FakeCuda, version: str = "8.6.0", name: str = "tensorrt") -> Any:
    """A Flavour; `opened` lists its engines."""
    logger = Logger()
    opened: list[FakeEngine] = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, ilogger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            return deserialize(data, self.engine_host_code_allowed)

    def deserialize(data: bytes, host_code: bool) -> FakeEngine | None:
        try:
            about = json.loads(data)
        except ValueError:
            logger.captured.lines.append("the plan does not parse")
            return None
        if about.get("compatible") and not host_code:
            logger.captured.lines.append("the plan holds host code")
            return None
        if about.get("version", found.version) != found.version and not about.get("compatible"):
            logger.captured.lines.append("the plan is of another version")
            return None
        opened.append(FakeEngine(about, cuda, logger))
        return opened[-1]

    module = SimpleNamespace(IProfiler=IProfiler, Runtime=Runtime)
    found = SimpleNamespace(
        name=name,
        version=version,
        title=f"TensorRT {version}",
        module=module,
        logger=logger,
        opened=opened,
        precisions=("fp32", "tf32", "fp16", "mixed"),
        capabilities=SimpleNamespace(
            builds=True, timing_cache=True, newer_operators=False, strongly_typed=False
        ),
    )
    return found
