"""From weights to an ONNX graph, without PyTorch and without tracing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import onnx

import restort
from restort.errors import RestortError
from restort.export.elan import ElanGraph
from restort.export.form import Form, Norm, sections
from restort.export.graph import GraphBuilder, Precision
from restort.export.restormer import RestormerGraph
from restort.models.spec import RestormerSpec

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

EMITTER = 4  # counted up whenever the same weights give another graph
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
) -> onnx.ModelProto:
    """The network of `weights` as an ONNX model with dynamic batch, height and width, weights inside.

    Input 'input' [N, C, H, W] in [0, 1], H and W multiples of `spec.size_multiple` (padding stays outside);
    output 'output' [N, C', H * scale, W * scale] on the same scale, not clipped. Both are of the type `ports`, by
    default that of `precision`. Statistics, norms, scores and softmax are float32 in every precision.

    The value that a block makes is named as its module (restort.models.blocks): 'encoder_level1.0', 'body.3'.

    `form` chooses how the nodes are written (restort.export.form); `norm` alone how a Restormer's LayerNorm is:
    'layer', as LayerNormalization between transposes, is what every other tool recognises; 'convolution' says
    the same with a 1x1 convolution and is faster in OpenVINO on a CPU. Weights without LayerNorm bias always
    take the second form, in 16 bits 'arithmetic'; fp16 with bias the first.
    `keep_fp32` names sections (restort.export.form.sections) that stay in float32, with casts at their borders:
    mixed precision. In fp32 all of them do; the nodes of those sections are marked then, as always. None, unlike no
    names, says that nothing was chosen, and so does the metadata.
    `opset` is 20 for Restormer (it has Gelu, which keeps the graph small), 17 for ELAN and 22 for bf16 (which has
    it for Conv) unless given; 17 is the newest that TensorRT 8.6 reads.

    Raises RestortError for an unknown precision or section.
    """
    if precision not in PRECISIONS:
        raise RestortError(f"a graph has precision fp32, fp16 or bf16, not {precision}")
    spec = weights.spec
    unknown = sorted(set(keep_fp32 or ()) - set(sections(spec)))
    if unknown:
        raise RestortError(f"the network has no section {unknown[0]!r} to keep in float32")
    is_restormer = isinstance(spec, RestormerSpec)
    opset = opset or (22 if precision == "bf16" else 20 if is_restormer else 17)
    graph = GraphBuilder(precision, opset, ports=ports, keep_fp32=keep_fp32 or ())
    form = form or Form(norm=norm)
    if isinstance(spec, RestormerSpec):
        result = RestormerGraph(graph, spec, weights.state, form).emit()
    else:
        result = ElanGraph(graph, spec, weights.state, form).emit()
    name = weights.metadata.get("name") or weights.path.stem
    metadata = {
        "restort.architecture": spec.architecture,
        "restort.scale": str(spec.scale),
        "restort.size_multiple": str(spec.size_multiple),
        "restort.precision": "mixed" if keep_fp32 and precision != "fp32" else precision,
        "restort.version": restort.__version__,
        "restort.model": name,
        "restort.weights_sha256": weights.digest,
    }
    if keep_fp32 is not None:
        metadata["restort.keep_fp32"] = ",".join(name for name in sections(spec) if name in keep_fp32)
    suffix = "" if spec.scale == 1 else f"*{spec.scale}"
    ports_of = (spec.in_channels, ""), (spec.out_channels, suffix)
    return graph.finish(spec.architecture, result, *ports_of, metadata)
