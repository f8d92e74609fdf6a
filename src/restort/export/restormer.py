"""The ONNX graph of a Restormer, node by node from its weights.

Source of the equations: Zamir et al., CVPR 2022, figure 2 and sections 3.1 and 3.2, as in models/restormer.py.
What differs from the plain form, and why (figures in benchmarks/NOTES.md):

- SpaceToDepth orders its channels otherwise than PixelUnshuffle does, so the levels below the first keep
  their residual stream in SpaceToDepth's order and the weights that touch it are permuted.
- The temperature and the guard against a norm of zero are one affine map of the norms.
- Hidden channels of the feed-forward network are filled up with zeros to a multiple of 16, the width of a
  vector: ONNX Runtime leaves its blocked layout for any other number.
- With one head, the output projection is multiplied into the small attention matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from restort.export.graph import Array, GraphBuilder
from restort.models.spec import LEVELS, RestormerSpec

Norm: TypeAlias = Literal["layer", "convolution"]

EPSILON = 1e-5
ZERO_NORM = (
    1e-20  # added to the norms of q and k, in float32, so that an all-zero channel gives 0 and not 0 / 0
)
VECTOR = 16


@dataclass(frozen=True)
class Stage:
    """Where a run of blocks stands: its level (0 is the full size), width, heads and the order of its channels."""

    level: int
    channels: int
    heads: int
    order: Array


class RestormerGraph:
    """Emits the nodes of one Restormer into a builder."""

    def __init__(
        self, graph: GraphBuilder, spec: RestormerSpec, state: Mapping[str, Array], norm: Norm = "layer"
    ) -> None:
        self.graph, self.spec, self.state = graph, spec, state
        with_bias = spec.layer_norm == "WithBias"
        self.layer_norm = with_bias and (norm == "layer" or graph.precision == "fp16")
        self.shapes: dict[tuple[int, int], str] = {}

    def emit(self) -> str:
        """All nodes, from 'input'; returns the name of the last one's value."""
        g, spec, dim = self.graph, self.spec, self.spec.dim
        embedded = x = g.conv("input", self.state["patch_embed.proj.weight"])
        skips: list[tuple[str, Array]] = []
        order = np.arange(dim)
        for level, name in enumerate(LEVELS):
            stage = Stage(level, dim << level, spec.heads[level], order)
            x = self._blocks(x, name, spec.num_blocks[level], stage)
            if level < 3:
                skips.append((x, order))
                x = g.conv(x, self.state[f"down{level + 1}_{level + 2}.body.0.weight"][:, order])
                x = g.op("SpaceToDepth", x, blocksize=2)
                order = space_to_depth_order(dim << (level + 1))
        for level in (2, 1, 0):
            x = g.conv(x, self.state[f"up{level + 2}_{level + 1}.body.0.weight"][:, order])
            x = g.op("DepthToSpace", x, blocksize=2, mode="CRD")
            skip, skip_order = skips[level]
            x = g.op("Concat", x, skip, axis=1)
            width = dim << max(level, 1)
            if level:
                columns = np.concatenate([np.arange(width), width + skip_order])
                reduce = f"reduce_chan_level{level + 1}"
                x = g.conv(x, self.state[f"{reduce}.weight"][:, columns], self.state.get(f"{reduce}.bias"))
            order = np.arange(width)
            stage = Stage(level, width, spec.heads[level], order)
            x = self._blocks(x, f"decoder_level{level + 1}", spec.num_blocks[level], stage)
        x = self._blocks(x, "refinement", spec.num_refinement_blocks, stage)
        if spec.dual_pixel:
            skip = g.conv(embedded, self.state["skip_conv.weight"], self.state.get("skip_conv.bias"))
            x = g.op("Add", x, skip)
        x = g.conv(x, self.state["output.weight"], self.state.get("output.bias"))
        return x if spec.dual_pixel else g.op("Add", x, "input")

    def _blocks(self, x: str, name: str, count: int, stage: Stage) -> str:
        g = self.graph
        for i in range(count):
            with g.scope(f"{name}.{i}"):
                x = g.op("Add", self._attention(x, f"{name}.{i}", stage), x)
                x = g.op("Add", self._feed_forward(x, f"{name}.{i}", stage), x)
            x = g.call(x, f"{name}.{i}")
        return x

    def _shape(self, x: str, stage: Stage) -> str:
        """The vector (N, C, H, W) of a level, made once from the first residual stream that needs it."""
        key = stage.level, stage.channels
        if key not in self.shapes:
            self.shapes[key] = self.graph.op("Shape", x)
        return self.shapes[key]

    def _normed(self, x: str, norm: str, conv: str, stage: Stage) -> tuple[str, Array, Array | None]:
        """LayerNorm `norm` of x, then what the 1x1 convolution `conv` after it has to be: (value, weight, bias).

        Plainly LayerNormalization between two transposes. Without it the variance comes from a 1x1 convolution
        that centres the channels, divides them by sqrt(C) and appends the constant sqrt(epsilon): the L2 norm of
        its result over the channels is sqrt(var + epsilon). The scale, the bias and, where there is a bias, the
        centring of the numerator are linear and move into `conv`.
        """
        g, order = self.graph, stage.order
        scale = self.state[f"{norm}.body.weight"][order]
        shift = self.state.get(f"{norm}.body.bias")
        weight = self.state[f"{conv}.weight"][:, order]
        bias = self.state.get(f"{conv}.bias")
        if self.layer_norm:
            assert shift is not None
            y = g.op("Transpose", x, perm=[0, 2, 3, 1])
            # stash_type 1: the statistics are float32 whatever the type of x
            y = g.op(
                "LayerNormalization",
                y,
                g.weight(scale),
                g.weight(shift[order]),
                axis=-1,
                epsilon=EPSILON,
                stash_type=1,
            )
            return g.op("Transpose", y, perm=[0, 3, 1, 2]), weight, bias
        c = stage.channels
        centring = np.eye(c) - 1 / c
        statistics = np.concatenate([centring / np.sqrt(c), np.zeros((1, c))])[:, :, None, None]
        constant = np.append(np.zeros(c), np.sqrt(EPSILON))
        wide = g.widen(x)
        deviation = g.reduce("ReduceL2", g.conv(wide, statistics, constant, wide=True), 1)
        y = g.narrow(g.op("Div", wide, deviation))
        matrix = weight[:, :, 0, 0].astype(np.float64) * scale
        if shift is not None:
            moved = weight[:, :, 0, 0].astype(np.float64) @ shift[order]
            bias = moved if bias is None else bias + moved
            matrix = matrix @ centring
        return y, matrix[:, :, None, None], bias

    def _attention(self, x: str, block: str, stage: Stage) -> str:
        """MDTA. The norms of q and k divide them before their product, which keeps the graph small."""
        g, name, c, heads = self.graph, f"{block}.attn", stage.channels, stage.heads
        shape = self._shape(x, stage) if g.precision == "fp32" or heads > 1 else ""
        y, weight, bias = self._normed(x, f"{block}.norm1", f"{name}.qkv", stage)
        y = g.conv(y, weight, bias)
        depthwise = self.state[f"{name}.qkv_dwconv.weight"]
        y = g.conv(y, depthwise, self.state.get(f"{name}.qkv_dwconv.bias"), groups=3 * c)
        temperature = self.state[f"{name}.temperature"].reshape(heads)
        projection = self.state[f"{name}.project_out.weight"][stage.order]
        bias = self.state.get(f"{name}.project_out.bias")
        bias = None if bias is None else bias[stage.order]
        if g.precision == "fp16":
            y = self._attend_fp16(y, shape, temperature, stage)
            return g.conv(y, projection, bias)
        y = g.op("Reshape", y, g.integers([0, 3 * heads, c // heads, -1]))
        y = g.op("Div", y, self._divisor(g.reduce("ReduceL2", y, 3), temperature))
        q, k, v = g.split(y, [heads] * 3, axis=1)
        scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
        if heads == 1 and bias is None:
            scores = g.op("MatMul", g.weight(projection[:, :, 0, 0]), scores)
            return g.op("Reshape", g.op("MatMul", scores, v), shape)
        return g.conv(g.op("Reshape", g.op("MatMul", scores, v), shape), projection, bias)

    def _attend_fp16(self, y: str, shape: str, temperature: Array, stage: Stage) -> str:
        """The same in float32 between two casts; Einsum saves nodes, and costs nothing where fp16 runs fast."""
        g, c, heads = self.graph, stage.channels, stage.heads
        if heads == 1:  # Einsum contracts H and W as they are
            y = g.widen(y)
            y = g.op("Div", y, self._divisor(g.reduce("ReduceL2", y, 2, 3), np.repeat(temperature, c)))
            q, k, v = g.split(y, [c] * 3, axis=1)
            scores = g.op("Softmax", g.op("Einsum", q, k, equation="nchw,ndhw->ncd"), axis=-1)
            return g.narrow(g.op("Einsum", scores, v, equation="ncd,ndhw->nchw"))
        y = g.widen(g.op("Reshape", y, g.integers([0, 3 * heads, c // heads, -1])))
        y = g.op("Div", y, self._divisor(g.reduce("ReduceL2", y, 3), temperature))
        q, k, v = g.split(y, [heads] * 3, axis=1)
        scores = g.op("Softmax", g.op("Einsum", q, k, equation="nhcp,nhdp->nhcd"), axis=-1)
        return g.narrow(g.op("Reshape", g.op("MatMul", scores, v), shape))

    def _divisor(self, norms: str, temperature: Array) -> str:
        """What divides (q, k, v), stacked along axis 1: (|q| / temperature, |k|, 1), as one affine map."""
        g, n = self.graph, len(temperature)
        safe = np.where(np.abs(temperature) < 1e-30, 1e-30, temperature.astype(np.float64))
        scale = np.concatenate([1 / safe, np.ones(n), np.zeros(n)])
        offset = np.concatenate([np.full(2 * n, ZERO_NORM), np.ones(n)])
        zero, one = np.zeros(3 * n), np.ones(3 * n)
        affine = [g.weight(values, wide=True) for values in (scale, offset, zero, one)]
        return g.op("BatchNormalization", norms, *affine, epsilon=0.0)

    def _feed_forward(self, x: str, block: str, stage: Stage) -> str:
        """GDFN, its gate and value made by separate convolutions at the two largest sizes of an fp32 graph.

        There the Split, which is a copy of the widest tensor of the network, costs more than a second pass over
        the narrow input; elsewhere the additional nodes buy nothing.
        """
        g, name = self.graph, f"{block}.ffn"
        y, weight, bias = self._normed(x, f"{block}.norm2", f"{name}.project_in", stage)
        hidden = self.spec.hidden(stage.channels)
        padded = -(-hidden // VECTOR) * VECTOR if hidden > VECTOR else hidden
        depthwise, depthwise_bias = self.state[f"{name}.dwconv.weight"], self.state.get(f"{name}.dwconv.bias")
        scale = 1.0 if g.opset >= 20 else np.sqrt(0.5)

        def rows(values: Array, halves: tuple[int, ...]) -> Array:
            return np.concatenate([fill(values[i * hidden : (i + 1) * hidden], padded) for i in halves])

        def expanded(*halves: int) -> str:
            """Both convolutions, of the gate (0), of the value (1) or of both stacked."""
            wide = g.conv(y, rows(weight, halves), None if bias is None else rows(bias, halves))
            moved = None if depthwise_bias is None else rows(depthwise_bias * scale, halves)
            return g.conv(wide, rows(depthwise * scale, halves), moved, groups=padded * len(halves))

        if stage.level < 2 and g.precision == "fp32":
            gate, value = expanded(0), expanded(1)
        else:
            gate, value = g.split(expanded(0, 1), [padded] * 2, axis=1)
        if g.opset >= 20:
            y = g.op("Mul", g.op("Gelu", gate), value)
        else:  # with a = gate / sqrt(2), b = value / sqrt(2): gelu(gate) value = a b (1 + erf(a))
            y = g.op("Mul", g.op("Mul", gate, value), g.op("Add", g.op("Erf", gate), g.weight(np.array(1.0))))
        out, out_bias = self.state[f"{name}.project_out.weight"], self.state.get(f"{name}.project_out.bias")
        out = fill(out.swapaxes(0, 1), padded).swapaxes(0, 1)[stage.order]
        return g.conv(y, out, None if out_bias is None else out_bias[stage.order])


def space_to_depth_order(channels: int) -> Array:
    """For each channel that SpaceToDepth(2) makes, the channel PixelUnshuffle(2) would have put there."""
    order: Array = np.arange(channels).reshape(channels // 4, 4).T.reshape(-1)
    return order


def fill(values: Array, length: int) -> Array:
    """`values` with zeros appended along the first axis up to `length`."""
    return np.concatenate([values, np.zeros((length - len(values), *values.shape[1:]), values.dtype)])
