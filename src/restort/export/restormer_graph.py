"""The ONNX graph of a Restormer, node by node from its weights.

Source of the equations: Zamir et al., CVPR 2022, figure 2 and sections 3.1 and 3.2, as in models/restormer.py.
Differences from the plain form:

- SpaceToDepth orders channels differently from PixelUnshuffle. The levels below the first keep their residual stream
  in SpaceToDepth's order, and the weights that touch it are permuted.
- The temperature and the guard against a norm of zero are one affine map of the norms.
- Hidden channels of the GDFN are padded with zeros to a multiple of 16, the width of a vector: ONNX Runtime leaves its
  blocked layout for any other number.
- With one head, the output projection is multiplied into the small attention matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from restort.export import mdta
from restort.export.form import Form, Norm
from restort.export.graph import Array, GraphBuilder
from restort.export.layernorm import normed
from restort.models.spec import LEVELS, RestormerSpec

VECTOR = 16


@dataclass(frozen=True)
class Stage:
    """A run of blocks: its level (0 is the full size), channels, heads, and the order of its channels."""

    level: int
    channels: int
    heads: int
    order: Array


class RestormerGraph:
    """Emits the nodes of one Restormer into a builder."""

    def __init__(
        self, graph: GraphBuilder, spec: RestormerSpec, state: Mapping[str, Array], form: Form
    ) -> None:
        self.graph, self.spec, self.state, self.form = graph, spec, state, form
        self.shapes: dict[tuple[int, int], str] = {}

    def emit(self) -> str:
        """Emit all nodes, from 'input', and return the value of the last one."""
        g, spec, dim = self.graph, self.spec, self.spec.dim
        with g.section("patch_embed"):
            embedded = x = g.conv(g.enter("input"), self.state["patch_embed.proj.weight"])
        skips: list[tuple[str, Array]] = []
        order = np.arange(dim)
        for level, name in enumerate(LEVELS):
            stage = Stage(level, dim << level, spec.heads[level], order)
            x = self._blocks(x, name, spec.num_blocks[level], stage)
            if level < 3:
                skips.append((x, order))
                with g.section(f"down{level + 1}_{level + 2}"):
                    weight = self.state[f"down{level + 1}_{level + 2}.body.0.weight"][:, order]
                    x = g.op("SpaceToDepth", g.conv(g.enter(x), weight), blocksize=2)
                order = space_to_depth_order(dim << (level + 1))
        for level in (2, 1, 0):
            with g.section(f"up{level + 2}_{level + 1}"):
                x = self._up(x, order, level, *skips[level])
            width = dim << max(level, 1)
            order = np.arange(width)
            stage = Stage(level, width, spec.heads[level], order)
            x = self._blocks(x, f"decoder_level{level + 1}", spec.num_blocks[level], stage)
        x = self._blocks(x, "refinement", spec.num_refinement_blocks, stage)
        with g.section("output"):
            x = g.enter(x)
            if spec.dual_pixel:
                weight = self.state["skip_conv.weight"]
                x = g.op("Add", x, g.conv(g.enter(embedded), weight, self.state.get("skip_conv.bias")))
            x = g.leave(g.conv(x, self.state["output.weight"], self.state.get("output.bias")))
        return x if spec.dual_pixel else g.op("Add", x, "input")

    def _up(self, x: str, order: Array, level: int, skip: str, skip_order: Array) -> str:
        """Upsample to `level` and append the encoder's value `skip`; reduce channels, except at the full size."""
        g = self.graph
        x = g.conv(g.enter(x), self.state[f"up{level + 2}_{level + 1}.body.0.weight"][:, order])
        x = g.op("DepthToSpace", x, blocksize=2, mode="CRD")
        x = g.op("Concat", x, g.enter(skip), axis=1)
        if not level:
            return x
        width = self.spec.dim << level
        columns = np.concatenate([np.arange(width), width + skip_order])
        reduce = f"reduce_chan_level{level + 1}"
        return g.conv(x, self.state[f"{reduce}.weight"][:, columns], self.state.get(f"{reduce}.bias"))

    def _blocks(self, x: str, name: str, count: int, stage: Stage) -> str:
        g = self.graph
        for i in range(count):
            with g.section(f"{name}.{i}"), g.scope(f"{name}.{i}"):
                x = g.enter(x)
                with g.operator("RestortMDTA"):
                    attended = self._attention(x, f"{name}.{i}", stage)
                x = g.op("Add", attended, x)
                with g.operator("RestortGDFN"):
                    fed = self._feed_forward(x, f"{name}.{i}", stage)
                x = g.op("Add", fed, x)
            x = g.call(x, f"{name}.{i}")
        return x

    def _shape(self, x: str, stage: Stage) -> str:
        """The vector (N, C, H, W) of a level, or (N, H, W, C) for 'rows'; made once, from the first x that needs it."""
        key = stage.level, stage.channels
        if key not in self.shapes:
            g = self.graph
            with g.operator(None):
                shape = g.op("Shape", x)
                if self.form.attention == "rows":
                    shape = g.op("Gather", shape, g.integers([0, 2, 3, 1]), axis=0)
            self.shapes[key] = shape
        return self.shapes[key]

    def _normed(self, x: str, norm: str, conv: str, stage: Stage) -> tuple[str, Array, Array | None]:
        """Normalise x by `norm`; return (value, weight, bias), the latter for the 1x1 convolution `conv` after it."""
        order, state = stage.order, self.state
        shift = state.get(f"{norm}.body.bias")
        return normed(
            self.graph,
            x,
            state[f"{norm}.body.weight"][order],
            None if shift is None else shift[order],
            state[f"{conv}.weight"][:, order],
            state.get(f"{conv}.bias"),
            self._norm(),
        )

    def _norm(self) -> Norm:
        """The form of LayerNorm; 16-bit graphs take LayerNormalization instead of a convolution."""
        norm = self.form.norm
        return "layer" if norm == "convolution" and self.graph.precision != "fp32" else norm

    def _attention(self, x: str, block: str, stage: Stage) -> str:
        """MDTA, in the nodes of the form (restort.export.mdta)."""
        g, name, c, heads, form = (
            self.graph,
            f"{block}.attn",
            stage.channels,
            stage.heads,
            self.form.attention,
        )
        shape = self._shape(x, stage) if form != "before" or g.precision == "fp32" or heads > 1 else ""
        y, weight, bias = self._normed(x, f"{block}.norm1", f"{name}.qkv", stage)
        depthwise, shift = self.state[f"{name}.qkv_dwconv.weight"], self.state.get(f"{name}.qkv_dwconv.bias")

        def expanded(rows: Array) -> str:
            """Emit the 1x1 and the depthwise convolution of some channels of (q, k, v)."""
            wider = g.conv(y, weight[rows], None if bias is None else bias[rows], layer=f"{name}.qkv")
            return g.conv(wider, depthwise[rows], None if shift is None else shift[rows], groups=len(rows))

        projection_bias = self.state.get(f"{name}.project_out.bias")
        parameters = mdta.Attention(
            self.state[f"{name}.temperature"].reshape(heads),
            self.state[f"{name}.project_out.weight"][stage.order],
            None if projection_bias is None else projection_bias[stage.order],
        )
        if form == "gram":
            parts = 4 ** (3 - stage.level)  # height and width are multiples of 8 at the full size
            qk, v = expanded(mdta.stacked(c, heads)), expanded(np.arange(2 * c, 3 * c))
            return mdta.gram(g, qk, v, shape, parameters, parts)
        attend = mdta.rows if form == "rows" else mdta.before
        return attend(g, expanded(np.arange(3 * c)), shape, parameters)

    def _feed_forward(self, x: str, block: str, stage: Stage) -> str:
        """Emit the GDFN.

        With the form 'auto', gate and value come from separate convolutions at the two largest sizes of an fp32
        graph: there a Split, which copies the largest tensor of the network, costs more than a second pass over the
        smaller input.
        """
        g, name = self.graph, f"{block}.ffn"
        y, weight, bias = self._normed(x, f"{block}.norm2", f"{name}.project_in", stage)
        hidden = self.spec.hidden(stage.channels)
        padded = -(-hidden // VECTOR) * VECTOR if hidden > VECTOR else hidden
        depthwise, depthwise_bias = self.state[f"{name}.dwconv.weight"], self.state.get(f"{name}.dwconv.bias")
        scale = 1.0 if g.opset >= 20 else np.sqrt(0.5)

        def rows(values: Array, halves: tuple[int, ...]) -> Array:
            return np.concatenate([pad_rows(values[i * hidden : (i + 1) * hidden], padded) for i in halves])

        def expanded(*halves: int) -> str:
            """Emit both convolutions of the gate (0), of the value (1), or of both stacked."""
            moved = None if bias is None else rows(bias, halves)
            wider = g.conv(y, rows(weight, halves), moved, layer=f"{name}.project_in")
            moved = None if depthwise_bias is None else rows(depthwise_bias * scale, halves)
            return g.conv(wider, rows(depthwise * scale, halves), moved, groups=padded * len(halves))

        large = stage.level < 2 and g.precision == "fp32"
        if self.form.gate == "separate" or (self.form.gate == "auto" and large):
            gate, value = expanded(0), expanded(1)
        else:
            gate, value = g.split(expanded(0, 1), [padded] * 2, axis=1)
        if g.opset >= 20:
            y = g.op("Mul", g.op("Gelu", gate), value)
        else:  # with a = gate / sqrt(2), b = value / sqrt(2): gelu(gate) value = a b (1 + erf(a))
            y = g.op(
                "Mul",
                g.op("Mul", gate, value),
                g.op("Add", g.op("Erf", gate), g.weight(np.ones((1, 1, 1, 1)))),
            )
        out, out_bias = self.state[f"{name}.project_out.weight"], self.state.get(f"{name}.project_out.bias")
        out = pad_rows(out.swapaxes(0, 1), padded).swapaxes(0, 1)[stage.order]
        out_bias = None if out_bias is None else out_bias[stage.order]
        return g.conv(y, out, out_bias, layer=f"{name}.project_out")


def space_to_depth_order(channels: int) -> Array:
    """For each channel that SpaceToDepth(2) makes, the channel that PixelUnshuffle(2) would put there."""
    order: Array = np.arange(channels).reshape(channels // 4, 4).T.reshape(-1)
    return order


def pad_rows(values: Array, length: int) -> Array:
    """Append zeros to `values` along the first axis, up to `length`."""
    return np.concatenate([values, np.zeros((length - len(values), *values.shape[1:]), values.dtype)])
