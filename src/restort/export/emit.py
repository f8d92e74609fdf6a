"""From weights to an ONNX graph, without PyTorch and without tracing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import onnx

import restort
from restort.errors import RestortError
from restort.export.elan import ElanGraph
from restort.export.graph import GraphBuilder, Precision
from restort.export.restormer import Norm, RestormerGraph
from restort.models.spec import RestormerSpec

if TYPE_CHECKING:
    from restort.models.checkpoint import Weights

EMITTER = 3  # counted up whenever the same weights give another graph
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def emit(
    weights: Weights,
    precision: Precision = "fp32",
    *,
    norm: Norm = "layer",
    opset: Literal[17, 20] | None = None,
) -> onnx.ModelProto:
    """The network of `weights` as an ONNX model with dynamic batch, height and width, weights inside.

    Input 'input' [N, C, H, W] in [0, 1], H and W multiples of `spec.size_multiple` (padding stays outside);
    output 'output' [N, C', H * scale, W * scale] on the same scale, not clipped. Both are float32, or float16
    with precision 'fp16', where statistics, norms, scores and softmax still are float32.

    The value that a block makes is named as its module (restort.models.blocks): 'encoder_level1.0', 'body.3'.

    `norm` chooses how a Restormer's LayerNorm is written: 'layer', as LayerNormalization between transposes, is
    what every other tool recognises; 'convolution' says the same with a 1x1 convolution and is faster in
    OpenVINO on a CPU. Weights without LayerNorm bias always take the second form, fp16 with it the first.
    `opset` is 20 for Restormer (it has Gelu, which keeps the graph small) and 17 for ELAN unless given; 17 is
    the newest that TensorRT 8.6 reads.

    Raises RestortError for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise RestortError(f"a graph has precision fp32 or fp16, not {precision}")
    spec = weights.spec
    is_restormer = isinstance(spec, RestormerSpec)
    graph = GraphBuilder(precision, opset or (20 if is_restormer else 17))
    if isinstance(spec, RestormerSpec):
        result = RestormerGraph(graph, spec, weights.state, norm).emit()
    else:
        result = ElanGraph(graph, spec, weights.state).emit()
    name = weights.metadata.get("name") or weights.path.stem
    metadata = {
        "restort.architecture": spec.architecture,
        "restort.scale": str(spec.scale),
        "restort.size_multiple": str(spec.size_multiple),
        "restort.precision": precision,
        "restort.version": restort.__version__,
        "restort.model": name,
        "restort.weights_sha256": weights.digest,
    }
    suffix = "" if spec.scale == 1 else f"*{spec.scale}"
    ports = (spec.in_channels, ""), (spec.out_channels, suffix)
    return graph.finish(spec.architecture, result, *ports, metadata)
