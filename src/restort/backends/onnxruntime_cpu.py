"""The backend `onnxruntime`: ONNX Runtime on the CPU in float32; the core install always has it."""

from __future__ import annotations

from typing import Any

from restort.errors import RestortError
from restort.runner import Array, Runner, call_failed, checked, closed, one_line
from restort.utils.cpu import default_threads
from restort.utils.quiet_imports import onnx_runtime
from restort.weights.checkpoint import Weights


class OnnxRuntimeRunner(Runner):
    """An ONNX Runtime session on the emitted graph; threads may run it at the same time."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, weights: Weights, precision: str = "fp32", threads: int | None = None) -> None:
        from restort.export.graph_cache import graph_path

        ort = onnx_runtime()
        self.spec = weights.spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Softmax tails underflow to denormals, which are slow and do not change a pixel.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        path = graph_path(weights, "fp32")
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise RestortError(
                f"ONNX Runtime cannot load {path}: {one_line(error)}; delete that file"
            ) from None
        self._input = self._session.get_inputs()[0].name
        self._run_options: Any = None

    def __call__(self, x: Array) -> Array:
        x = checked(x, self.spec)
        session = self._session
        if session is None:
            raise closed(self.name)
        try:
            result: Array = session.run(None, {self._input: x}, self._run_options)[0]
        except Exception as error:
            raise call_failed("ONNX Runtime", x.shape, error) from None
        return result

    def shrink(self) -> None:
        """From now on free the arena after every run: it keeps all memory that it ever took."""
        self._run_options = onnx_runtime().RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def close(self) -> None:
        self._session = None
