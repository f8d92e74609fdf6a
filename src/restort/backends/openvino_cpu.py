"""The backend `openvino`: OpenVINO on the CPU in float32 or bfloat16, the fastest on x86 processors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.runner import Array, Runner, call_failed, checked, closed, one_line, wants_memory
from restort.utils.cpu import default_threads
from restort.utils.quiet_imports import openvino
from restort.weights.checkpoint import Weights

HINTS = {"fp32": "f32", "bf16": "bf16"}  # INFERENCE_PRECISION_HINT by our names
SHAPES_KEPT = 3  # compiled models of fixed shapes; each holds a copy of the weights


class OpenVinoRunner(Runner):
    """The emitted graph, compiled for any shape and, for ELAN, again for each shape that repeats.

    A fixed shape turns ELAN's index arithmetic into constants, which makes it a third faster; compiling takes about a
    second. So the first array of a shape runs on the dynamic model, and the second one compiles for that shape: folders
    of equal pictures and tiles gain. Restormer gains nothing and stays dynamic (docs/design/cpu-backends.md). The two
    models differ in the last bits. Calls from several threads take turns: one inference uses all threads.
    """

    name = "openvino"

    def __init__(self, weights: Weights, precision: str = "fp32", threads: int | None = None) -> None:
        from restort.export.graph_cache import graph_path

        self.spec = weights.spec
        self.precision = precision
        self._fixes_shapes = weights.spec.architecture == "elan"
        self._core: Any = openvino().Core()
        self._options = {
            # Without this hint OpenVINO computes in bfloat16 wherever the processor supports it.
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads or default_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Two processes that pin their threads would pin them to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._path = graph_path(weights, "fp32", norm="convolution")
        self._lock = threading.Lock()
        self._seen: set[tuple[int, ...]] = set()
        self._fixed: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._dynamic: Any = None
        self._weights, self._threads = weights, threads
        self._instead: Runner | None = None

    def __call__(self, x: Array) -> Array:
        x = checked(x, self.spec)
        with self._lock:
            if self._core is None:
                raise closed(self.name)
            if self._instead is not None:
                return self._instead(x)
            request = self._request(x.shape)
            try:
                request.infer([x], share_inputs=True)
            except Exception as error:
                raise call_failed("OpenVINO", x.shape, error) from None
            # Copied: the next call overwrites the request's buffer.
            result = np.array(request.get_output_tensor(0).data, np.float32, order="C")
        if (
            result.size == 0
        ):  # where memory is short, `infer` may return without an error and without a result
            raise call_failed("OpenVINO", x.shape, MemoryError())
        return result

    def shrink(self) -> None:
        """Continue on ONNX Runtime: after it has run out of memory, OpenVINO returns nothing, or crashes."""
        from restort.backends.onnxruntime_cpu import OnnxRuntimeRunner

        with self._lock:
            if self._core is None or self._instead is not None:
                return
            self._fixed.clear()
            self._dynamic = None
            self.warn("OpenVINO ran out of memory; continuing with ONNX Runtime in fp32")
            self._instead = OnnxRuntimeRunner(self._weights, "fp32", self._threads)
            self._instead.shrink()

    def expect(self, shape: tuple[int, ...]) -> None:
        with self._lock:
            self._seen.add(shape)

    def _request(self, shape: tuple[int, ...]) -> Any:
        """Return the inference request for x of `shape`, compiled if it is not kept."""
        if shape in self._fixed:
            self._fixed.move_to_end(shape)
            return self._fixed[shape]
        if self._fixes_shapes and shape in self._seen:
            self._fixed[shape] = self._compile(shape)
            if len(self._fixed) > SHAPES_KEPT:
                self._fixed.popitem(last=False)
            return self._fixed[shape]
        self._seen.add(shape)
        if self._dynamic is None:
            self._dynamic = self._compile(None)
        return self._dynamic

    def _compile(self, shape: tuple[int, ...] | None) -> Any:
        try:
            model = self._core.read_model(self._path)
            if shape is not None:
                model.reshape(list(shape))
            return self._core.compile_model(model, "CPU", self._options).create_infer_request()
        except Exception as error:
            if wants_memory(error):
                raise call_failed("OpenVINO", shape or (), error) from None
            raise RestortError(
                f"OpenVINO cannot compile {self._path}: {one_line(error)}; use --backend onnxruntime"
            ) from None

    def close(self) -> None:
        with self._lock:
            self._fixed.clear()
            self._dynamic = self._core = self._instead = None
