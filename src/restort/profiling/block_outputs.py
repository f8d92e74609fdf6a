"""The output of every block of a network on one backend, so that two backends can be compared block by block.

Three ways to get them: the runner's own `blocks(x)` (backends with their own kernels or engines), hooks on a PyTorch
module, or the ONNX graph run again by the backend's library with the blocks' values as additional outputs. Additional
outputs prevent fusion across the end of a block and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from restort.errors import UsageError
from restort.models.block_names import block_names
from restort.runner import Array, Runner
from restort.utils.cpu import default_threads
from restort.weights.checkpoint import Weights


def block_outputs(runner: Runner, weights: Weights, x: Array, threads: int | None = None) -> dict[str, Array]:
    """Return the output of every block for x, both float32 (N, C, H, W), in the order they run.

    Names are those of `restort.models.block_names.block_names`, channels are in published order.

    Raises UsageError for a backend that does not expose its blocks.
    """
    own = runner.blocks(x)
    if own is not None:
        found = own
    elif (network := _network(runner)) is not None:
        found = _hooked(runner, network, x)
    elif runner.name == "onnxruntime":
        found = _onnxruntime(weights, x, threads)
    elif runner.name == "openvino":
        found = _openvino(weights, runner.precision, x, threads)
    else:
        raise UsageError(f"the backend {runner.name} does not show its blocks; leave --blocks out")
    return {name: found[name] for name in block_names(weights.spec)}


def _network(runner: Runner) -> Any:
    """Return the PyTorch module of a runner, or None. Does not import PyTorch."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return next((value for value in vars(runner).values() if isinstance(value, torch.nn.Module)), None)


def _hooked(runner: Runner, network: Any, x: Array) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[name] = np.array(output.detach().float().cpu().numpy(), np.float32, order="C")

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(keep(name)) for name in block_names(runner.spec)
    ]
    try:
        runner(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _graph(weights: Weights, **form: Any) -> bytes:
    from restort.export.blocks import with_block_outputs
    from restort.export.emit import emit

    model = with_block_outputs(emit(weights, "fp32", **form), weights.spec)
    data: bytes = model.SerializeToString()
    return data


def _published(weights: Weights, values: list[Array]) -> dict[str, Array]:
    from restort.export.blocks import published_order

    spec = weights.spec
    return {
        name: np.ascontiguousarray(published_order(value, name, spec), np.float32)
        for name, value in zip(block_names(spec), values, strict=True)
    }


def _onnxruntime(weights: Weights, x: Array, threads: int | None) -> dict[str, Array]:
    from restort.utils.quiet_imports import onnx_runtime

    ort = onnx_runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(_graph(weights), options, providers=["CPUExecutionProvider"])
    return _published(weights, session.run(list(block_names(weights.spec)), {"input": x}))


def _openvino(weights: Weights, precision: str, x: Array, threads: int | None) -> dict[str, Array]:
    from restort.backends.openvino_cpu import HINTS
    from restort.utils.quiet_imports import openvino

    core = openvino().Core()
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": threads or default_threads(),
        "ENABLE_CPU_PINNING": False,
    }
    model = core.compile_model(core.read_model(_graph(weights, norm="convolution")), "CPU", options)
    request = model.create_infer_request()
    request.infer([x])
    names = block_names(weights.spec)
    return _published(weights, [np.array(request.get_tensor(name).data) for name in names])
