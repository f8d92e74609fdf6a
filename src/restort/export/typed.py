"""Graphs for TensorRT engines, and the types that a graph computes in.

In every precision the statistics of LayerNorm, the norms of q and k, their product and the softmax are float32 (and the
unscaled q q^T of ELAN with its softmax): sums over all pixels overflow float16, and bfloat16 has 8 significant bits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import TensorProto, helper

from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.form import ENGINE_PRECISIONS, TYPED, Form
from restort.export.graph import KEPT, Precision

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

NAMES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def typed_graph(
    weights: Weights,
    precision: str = "fp32",
    *,
    keep_fp32: Collection[str] | None = None,
    newer_operators: bool = True,
    form: Form = TYPED,
) -> onnx.ModelProto:
    """Emit the network of `weights` for an engine of `precision`, with float32 'input' and 'output'.

    precision           one of ENGINE_PRECISIONS. 'fp32' and 'tf32' give one graph; the builder's settings differ.
    keep_fp32           for 'mixed', the sections in float32 (restort.export.form.sections); for 'fp32', sections to
                        mark for a weakly typed builder (`float32_nodes`).
    newer_operators     False gives opset 17, the newest that TensorRT 8.6 reads.

    Raises RestortError for another precision, and for sections in one that is neither 'mixed' nor 'fp32'.
    """
    if precision not in ENGINE_PRECISIONS:
        raise RestortError(
            f"unknown precision of an engine: {precision!r}; choose {', '.join(ENGINE_PRECISIONS)}"
        )
    if keep_fp32 and precision not in ("mixed", "fp32"):
        raise RestortError(f"precision {precision} keeps no sections in float32; use mixed")
    opset: Literal[17] | None = None if newer_operators else 17
    if precision == "bf16":
        if not newer_operators:
            raise RestortError("opset 17 has no bfloat16; choose fp16, or install a newer TensorRT")
        opset = None
    kind: Precision = "bf16" if precision == "bf16" else "fp16" if precision in ("fp16", "mixed") else "fp32"
    return emit(weights, kind, opset=opset, form=form, keep_fp32=keep_fp32, ports="fp32")


def float32_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes marked to stay in float32 when the graph was emitted: of sections, or at its ends."""
    return {node.name for node in model.graph.node if node.doc_string == KEPT}


ENDS = {"LayerNormalization", "Softmax"}  # their results are small and fit into 16 bits


def float32_values(model: onnx.ModelProto) -> set[str]:
    """Names of the values that must be float32 whatever their types in the graph: norms, and scores to the softmax.

    Scores are the values from a product to its softmax, the product included, and products of them with weights.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    waiting = []
    for node in model.graph.node:
        if node.op_type in ENDS or node.op_type in ("ReduceL2", "ReduceMean"):
            found.update(node.output)
        if node.op_type == "ReduceMean" and (squares := made.get(node.input[0])) and squares.op_type == "Mul":
            found.update(squares.output)
        if node.op_type == "Softmax":
            waiting.append(node.input[0])
    while waiting:
        maker = made.get(waiting.pop())
        if maker is None or maker.output[0] in found or maker.op_type in ("Split", "Conv", "Gather"):
            continue
        if maker.op_type == "Reshape":
            source = made.get(maker.input[0])
            if source is None or source.op_type not in ("MatMul", "ReduceSum"):
                continue  # this reshape is of q or k, before the product
        found.update(maker.output)
        if maker.op_type not in ("MatMul", "Einsum"):
            waiting.extend(maker.input)
    weights = {tensor.name for tensor in model.graph.initializer}
    matrices: set[str] = set()  # products of scores and weights, which are small, too
    for node in model.graph.node:
        if node.op_type == "MatMul" and weights & set(node.input):
            other = next((made.get(name) for name in node.input if name not in weights), None)
            if other is not None and (other.op_type == "Softmax" or other.output[0] in matrices):
                matrices.update(node.output)
    return found | matrices


def with_float32_ports(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy with casts at float16 and bfloat16 inputs and outputs."""
    narrow = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [port for port in graph.input if port.name not in weights]
    if not any(port.type.tensor_type.elem_type in narrow for port in (*inputs, *graph.output)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for port in graph.input:
        kind = port.type.tensor_type.elem_type
        if kind in narrow and port.name not in weights:
            inner = f"{port.name}/narrow"
            _rename(graph, port.name, inner)
            graph.node.insert(0, helper.make_node("Cast", [port.name], [inner], name=inner, to=kind))
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    for port in graph.output:
        if port.type.tensor_type.elem_type in narrow:
            inner = f"{port.name}/narrow"
            _rename(graph, port.name, inner)
            graph.node.append(
                helper.make_node("Cast", [inner], [port.name], name=f"{port.name}/wide", to=TensorProto.FLOAT)
            )
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the element type (onnx.TensorProto) of every value of a graph, by name.

    Raises RestortError where types contradict one another.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(
            weights_as_inputs(model), check_type=True, strict_mode=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise RestortError(f"cannot infer the types of the graph: {reason}") from None
    graph = inferred.graph
    ports = (*graph.input, *graph.value_info, *graph.output)
    return {port.name: port.type.tensor_type.elem_type for port in ports}


def weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy the model with float weights as inputs: inference of types and shapes then copies no numbers."""
    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = model.graph.name
    copy.graph.node.extend(model.graph.node)
    copy.graph.output.extend(model.graph.output)
    named = {tensor.name for tensor in model.graph.initializer}
    copy.graph.input.extend(port for port in model.graph.input if port.name not in named)
    for tensor in model.graph.initializer:
        if tensor.data_type in NAMES:
            port = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            copy.graph.input.append(port)
        else:
            copy.graph.initializer.append(tensor)
    return copy


def convolutions(model: onnx.ModelProto) -> dict[str, str]:
    """Return the type that each convolution computes in, by name: 'float32', 'float16', 'bfloat16'.

    Convolutions do almost all of the work and have the type of their section; products and norms may be float32 in
    every section.
    """
    types = tensor_types(model)
    return {
        node.name or node.output[0]: NAMES.get(types.get(node.output[0], 0), "another type")
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    }


def check_precision(model: onnx.ModelProto, precision: str) -> dict[str, str]:
    """Return `convolutions(model)` if their types are those of an engine of `precision`.

    Raises RestortError that names the others: nothing falls back to another precision silently.
    """
    found = convolutions(model)
    wanted = "bfloat16" if precision == "bf16" else "float16" if precision in ("fp16", "mixed") else "float32"
    wrong = [name for name, kind in found.items() if kind != wanted]
    if precision == "mixed" and (len(wrong) < len(found) or not found):
        return found
    if wrong:
        names = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        kinds = " and ".join(sorted({found[name] for name in wrong}))
        raise RestortError(
            f"precision {precision} requested, but {len(wrong)} of {len(found)} convolutions of the graph compute in "
            f"{kinds}: {names}; give a graph of that precision, or --model or --weights instead of --onnx"
        )
    return found
