"""Values between the blocks of an emitted graph, as additional outputs."""

from __future__ import annotations

import onnx
from onnx import helper

from restort.export.graph import Array
from restort.export.restormer_graph import space_to_depth_order
from restort.models.block_names import block_names
from restort.models.spec import LEVELS, RestormerSpec, Spec

REORDERED = LEVELS[1:]  # levels in SpaceToDepth's order of channels (restort.export.restormer_graph)


def with_block_outputs(model: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """Copy an emitted model and add the value of every block (`block_names`, in order) after 'output'.

    No node is added, but a tool can no longer fuse across the end of a block, so results may differ in the last digits.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    kind = model.graph.output[0].type.tensor_type.elem_type
    tapped.graph.output.extend(
        helper.make_tensor_value_info(name, kind, [None] * 4) for name in block_names(spec)
    )
    return tapped


def published_order(value: Array, block: str, spec: Spec) -> Array:
    """Reorder the channels of `value` (N, C, H, W), of `block` in an emitted graph, as in the published network."""
    if not isinstance(spec, RestormerSpec) or block.split(".")[0] not in REORDERED:
        return value
    # Channel i of the graph is channel order[i] of the network.
    return value[:, space_to_depth_order(value.shape[1]).argsort()]
