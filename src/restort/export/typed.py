"""Graphs for engines that take the types of the graph as they are, and what such a graph computes in.

In every precision the statistics of LayerNorm, the norms of q and k, their product and the softmax are float32
(and the unscaled q q^T of ELAN with its softmax): sums over all pixels overflow float16, and bfloat16 has 8 bits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import TensorProto, helper

from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.form import TYPED, Form
from restort.export.graph import KEPT, Precision

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "mixed")
NAMES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def typed_graph(
    weights: Weights,
    precision: str = "fp32",
    *,
    keep_fp32: Collection[str] | None = None,
    newer_operators: bool = True,
    form: Form = TYPED,
) -> onnx.ModelProto:
    """The network of `weights` with float32 'input' and 'output', to be built into an engine of `precision`.

    'fp32' and 'tf32' are the same graph: what they differ in is an option of the builder. 'mixed' is float16 with
    the sections `keep_fp32` in float32 (restort.export.form.sections); in 'fp32' they are marked, for builders that
    choose types by themselves and are held to some (`kept`). `newer_operators` False gives opset 17, all
    that TensorRT 8.6 reads.

    Raises RestortError for another precision, or sections to keep in one that is neither 'mixed' nor 'fp32'.
    """
    if precision not in PRECISIONS:
        raise RestortError(
            f"there is no precision {precision!r} for an engine; choose {', '.join(PRECISIONS)}"
        )
    if keep_fp32 and precision not in ("mixed", "fp32"):
        raise RestortError(f"only mixed precision keeps sections in float32, not {precision}")
    opset: Literal[17] | None = None if newer_operators else 17
    if precision == "bf16":
        if not newer_operators:
            raise RestortError("a graph of opset 17 has no bfloat16; choose fp16, or a newer TensorRT")
        opset = None
    kind: Precision = "bf16" if precision == "bf16" else "fp16" if precision in ("fp16", "mixed") else "fp32"
    return emit(weights, kind, opset=opset, form=form, keep_fp32=keep_fp32, ports="fp32")


def kept(model: onnx.ModelProto) -> set[str]:
    """The nodes that were to stay in float32 when the graph was emitted, by name: of sections, or at its ends."""
    return {node.name for node in model.graph.node if node.doc_string == KEPT}


ENDS = {"LayerNormalization", "Softmax"}  # what they give is small and may be of 16 bits


def statistics(model: onnx.ModelProto) -> set[str]:
    """The values of a graph that must be float32 whatever the types in it say: norms, and scores up to the softmax.

    Scores are everything between a softmax and the product before it, that product included, and what weights make of
    them.
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
                continue  # the reshape of q and k, before the product
        found.update(maker.output)
        if maker.op_type not in ("MatMul", "Einsum"):
            waiting.extend(maker.input)
    weights = {tensor.name for tensor in model.graph.initializer}
    matrices: set[str] = set()  # made of scores and weights: small, too
    for node in model.graph.node:
        if node.op_type == "MatMul" and weights & set(node.input):
            other = next((made.get(name) for name in node.input if name not in weights), None)
            if other is not None and (other.op_type == "Softmax" or other.output[0] in matrices):
                matrices.update(node.output)
    return found | matrices


def with_float32_ports(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, or a copy of it with casts at those inputs and outputs that are float16 or bfloat16."""
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
    """The element type (onnx.TensorProto) of every value of a graph, by name.

    Raises RestortError where it cannot be told, because the types of a graph contradict one another, say.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(light(model), check_type=True, strict_mode=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise RestortError(f"the types of the graph cannot be told ({reason})") from None
    graph = inferred.graph
    ports = (*graph.input, *graph.value_info, *graph.output)
    return {port.name: port.type.tensor_type.elem_type for port in ports}


def light(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights as inputs: types do not depend on numbers, and copying them takes time."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    named = {tensor.name for tensor in model.graph.initializer}
    light.graph.input.extend(port for port in model.graph.input if port.name not in named)
    for tensor in model.graph.initializer:
        if tensor.data_type in NAMES:
            port = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(port)
        else:
            light.graph.initializer.append(tensor)
    return light


def convolutions(model: onnx.ModelProto) -> dict[str, str]:
    """The convolutions of a graph by name, with the type they compute in: 'float32', 'float16', 'bfloat16'.

    Almost all work is theirs, and they have the type of their section; products and norms may be float32 on
    purpose in every section.
    """
    types = tensor_types(model)
    return {
        node.name or node.output[0]: NAMES.get(types.get(node.output[0], 0), "another type")
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    }


def check_precision(model: onnx.ModelProto, precision: str) -> dict[str, str]:
    """`convolutions(model)`, if they compute in what an engine of `precision` is to compute in.

    Raises RestortError that names those that do not: nothing falls back to another precision in silence.
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
            f"{precision} was asked for, but {len(wrong)} of {len(found)} convolutions of the graph compute in "
            f"{kinds} ({names}); give the graph of that precision, or --model or --weights instead of --onnx"
        )
    return found
