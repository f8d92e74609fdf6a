"""The values between the blocks of an emitted graph, as outputs of their own."""

from __future__ import annotations

import onnx
from onnx import helper

from restort.export.graph import Array
from restort.export.restormer import space_to_depth_order
from restort.models.blocks import block_names
from restort.models.spec import LEVELS, RestormerSpec, Spec

REORDERED = LEVELS[1:]  # their residual stream keeps SpaceToDepth's order: see restort.export.restormer


def with_block_outputs(model: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """A copy of an emitted model whose outputs are 'output' and then the blocks' (`block_names`, in order).

    No node is added; but a tool can no longer fuse across a block's end, so the numbers may differ from those of
    the plain graph in the last digits.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    kind = model.graph.output[0].type.tensor_type.elem_type
    tapped.graph.output.extend(
        helper.make_tensor_value_info(name, kind, [None] * 4) for name in block_names(spec)
    )
    return tapped


def published_order(value: Array, block: str, spec: Spec) -> Array:
    """The value (N, C, H, W) of `block` in an emitted graph, its channels in the order of the published network."""
    if not isinstance(spec, RestormerSpec) or block.split(".")[0] not in REORDERED:
        return value
    # Channel i of the graph is channel order[i] of the network.
    return value[:, space_to_depth_order(value.shape[1]).argsort()]
