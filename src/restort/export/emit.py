"""From weights to an ONNX graph, without PyTorch and without tracing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import onnx

from restort.errors import RestortError
from restort.export.elan_graph import ElanGraph
from restort.export.form import Form, Norm, sections
from restort.export.graph import GraphBuilder, Precision
from restort.export.operators import chosen, fold
from restort.export.qdq import Quantization, check_quantization
from restort.export.restormer_graph import RestormerGraph
from restort.models.spec import RestormerSpec
from restort.version import __version__

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

EMITTER = 4  # increase it whenever a change makes another graph of the same weights
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def emit(
    weights: Weights,
    precision: Precision = "fp32",
    *,
    norm: Norm = "layer",
    opset: Literal[17, 20, 22] | None = None,
    form: Form | None = None,
    keep_fp32: Collection[str] | None = None,
    ports: Precision | None = None,
    operators: Collection[str] = (),
    quantization: Quantization | None = None,
    observe: bool = False,
) -> onnx.ModelProto:
    """Emit the network of `weights` as an ONNX model with dynamic batch, height and width, weights inside.

    Input 'input' is [N, C, H, W] in [0, 1], H and W multiples of `spec.size_multiple` (padding stays outside of the
    graph). Output 'output' is [N, C', H * scale, W * scale], not clipped. The value that a block makes is named after
    its module (restort.models.block_names): 'encoder_level1.0', 'body.3'. Statistics, norms, scores and softmax are
    float32 in every precision.

    precision   type of weights and activations.
    norm        short for Form(norm=norm). OpenVINO on a CPU is faster with 'convolution'.
    opset       default: 20 for a Restormer (its Gelu keeps the graph small), 17 for an ELAN, 22 for bf16 (the first
                with bfloat16 Conv). TensorRT 8.6 reads no opset newer than 17.
    form        how the nodes are written (restort.export.form).
    keep_fp32   sections (restort.export.form.sections) that stay in float32, with casts at their borders: mixed
                precision. In an fp32 graph their nodes are only marked. None means that nobody chose sections, an
                empty collection that none were chosen; the metadata tells the two apart.
    ports       type of input and output; default: `precision`.
    operators   names of restort.export.operators.OPERATORS: each of these operators is one node, with its body as a
                function of the model.
    quantization    layers whose inputs and weights are rounded to INT8 or FP8, by explicit QuantizeLinear and
                DequantizeLinear (restort.export.qdq); the rest has `precision`. Needs opset 20, the default then,
                for FP8 and for fp16; with 17 the weights are stored as float, as TensorRT 8.6 wants them.
    observe     add outputs with the largest absolute value of each input channel of every layer that can be quantised.

    Raises RestortError for an unknown precision, section, operator or layer, and where the opset lacks a type.
    """
    if precision not in PRECISIONS:
        raise RestortError(f"unknown precision of a graph: {precision!r}; choose fp32, fp16 or bf16")
    spec = weights.spec
    kinds = chosen(spec, operators)
    unknown = sorted(set(keep_fp32 or ()) - set(sections(spec)))
    if unknown:
        raise RestortError(
            f"unknown section to keep in float32: {unknown[0]!r}; choose from {', '.join(sections(spec))}"
        )
    newer = isinstance(spec, RestormerSpec) or quantization is not None
    opset = opset or (22 if precision == "bf16" else 20 if newer else 17)
    if quantization is not None:
        check_quantization(quantization, spec, precision, opset)
    graph = GraphBuilder(
        precision, opset, ports=ports, keep_fp32=keep_fp32 or (), quantization=quantization, observe=observe
    )
    form = form or Form(norm=norm)
    if isinstance(spec, RestormerSpec):
        result = RestormerGraph(graph, spec, weights.state, form).emit()
    else:
        result = ElanGraph(graph, spec, weights.state).emit()
    name = weights.metadata.get("name") or weights.path.stem
    metadata = {
        "restort.architecture": spec.architecture,
        "restort.scale": str(spec.scale),
        "restort.size_multiple": str(spec.size_multiple),
        "restort.precision": "mixed" if keep_fp32 and precision != "fp32" else precision,
        "restort.version": __version__,
        "restort.model": name,
        "restort.weights_sha256": weights.digest,
    }
    if quantization is not None:
        metadata["restort.quantization"] = quantization.kind
    if keep_fp32 is not None:
        metadata["restort.keep_fp32"] = ",".join(name for name in sections(spec) if name in keep_fp32)
    suffix = "" if spec.scale == 1 else f"*{spec.scale}"
    ports_of = (spec.in_channels, ""), (spec.out_channels, suffix)
    if operators:
        metadata["restort.operators"] = ",".join(sorted(operators))
    model = graph.finish(spec.architecture, result, *ports_of, metadata)
    if operators:
        fold(model, {name: group for name, group in graph.groups.items() if group[0] in kinds})
    return model
