"""An ONNX graph of one node, a whole forward pass: TensorRT imports it as the plugin RestortPass (plugin/)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

import restort
from restort.backends.fused.aot_package import Plan, read_plan
from restort.errors import RestortError

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

OPSET, IR_VERSION = 17, 8  # the newest that TensorRT 8.6 reads


def plan_graph(weights: Weights, plan: bytes | Path | str) -> onnx.ModelProto:
    """The graph of a plan of `weights` (aot_compile.make_plan): its bytes, or the path of its file.

    Input 'input' and output 'output' are float32 of the plan's shapes. Of bytes the graph holds a copy, of a path only
    the absolute path, so that the file has to stay where it is until the engine is built. Raises RestortError for
    bytes that are no plan, or the plan of other weights.
    """
    if isinstance(plan, bytes):
        made, attribute = read_plan(plan), plan
    else:
        path = Path(plan).resolve()
        try:
            made, attribute = read_plan(path.read_bytes()), f"file:{path}".encode()
        except OSError as error:
            raise RestortError(f"the plan {path} cannot be read: {error.strerror}") from None
    if made.text.get("weights_sha256") != weights.digest:
        raise RestortError("the plan was made of other weights; make it again from these")
    node = helper.make_node("RestortPass", ["input"], ["output"], name="pass", plan=attribute)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", made.input), ("output", made.output))
    ]
    graph = helper.make_graph([node], weights.spec.architecture, ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="restort")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, _metadata(weights, made))
    return model


def _metadata(weights: Weights, plan: Plan) -> dict[str, str]:
    """The keys of restort.export.emit."""
    spec = weights.spec
    return {
        "restort.architecture": spec.architecture,
        "restort.scale": str(spec.scale),
        "restort.size_multiple": str(spec.size_multiple),
        "restort.precision": str(plan.text.get("precision", "")),
        "restort.version": restort.__version__,
        "restort.model": weights.metadata.get("name") or weights.path.stem,
        "restort.weights_sha256": weights.digest,
    }
