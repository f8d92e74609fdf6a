"""A graph for one size of input: arithmetic of sizes is computed here, once, and stored in the graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from restort.export.typed import weights_as_inputs

MOST_PIXELS = 2**20  # of an ELAN, whose graph then holds indices: about twenty int64 a pixel
INTEGER = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Range",
        "Gather",
        "Concat",
        "Slice",
        "ScatterElements",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that are folded where all their inputs are known int64 values."""


def with_fixed_input(model: onnx.ModelProto, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Copy `model` for inputs of `shape` (N, C, H, W), without arithmetic of sizes and indices.

    Index arithmetic stays in the graph above MOST_PIXELS pixels.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name for tensor in graph.initializer}
    (port,) = (port for port in graph.input if port.name not in weights)
    for dim, size in zip(port.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    if shape[0] * shape[2] * shape[3] > MOST_PIXELS and any(node.op_type == "Range" for node in graph.node):
        return copy
    if any(part.HasField("g") for node in graph.node for part in node.attribute):
        return copy  # the body of an If or a Loop may use any value
    known = _sizes(copy)
    numbers = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT64}
    foldable = []
    for node in graph.node:
        if node.op_type in INTEGER and all(name in numbers or name in known for name in node.input):
            foldable.append(node)
            numbers.update(node.output)
    folded = {name for node in foldable for name in node.output}
    gone = folded | set(known)
    rest = [node for node in graph.node if node.output[0] not in gone]
    wanted = sorted({name for node in rest for name in node.input if name in gone})
    values = known | _computed(copy, foldable, [name for name in wanted if name in folded], known)
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in wanted)
    del graph.node[:]
    graph.node.extend(rest)
    return copy


def _sizes(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The values of Shape nodes, where all sizes are known."""
    inferred = onnx.shape_inference.infer_shapes(weights_as_inputs(model), data_prop=True).graph
    dims = {port.name: port.type.tensor_type.shape.dim for port in (*inferred.input, *inferred.value_info)}
    found = {}
    for node in model.graph.node:
        sizes = [dim.dim_value for dim in dims.get(node.input[0], ())] if node.op_type == "Shape" else []
        if sizes and all(sizes) and not node.attribute:
            found[node.output[0]] = np.array(sizes, np.int64)
    return found


def _computed(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str], known: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    if not wanted:
        return {}
    outputs = [onnx.helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in wanted]
    numbers = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64]
    numbers += [numpy_helper.from_array(values, name) for name, values in known.items()]
    part = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "sizes", [], outputs, numbers), opset_imports=model.opset_import
    )
    part.ir_version = model.ir_version
    return dict(zip(wanted, ReferenceEvaluator(part).run(None, {}), strict=True))
