"""The ONNX graph of an ELAN, node by node from its weights.

Source of the equations: Zhang et al., ECCV 2022, sections 3.1 to 3.3, as in models/elan.py.

- The residual stream is a picture (N, C, H, W): 1x1 convolutions, the shift (a depthwise convolution with its stored
  kernel) and residual sums follow one another, which every tool fuses and runs channels last.
- Only attention sees the picture as rows of channels, (N * H * W, C), and moves rows (pixels.py).
- BatchNorm is folded into the projection before it, the colour range into head and tail, and the mean colour added at
  the end into the bias of the tail. The mean colour subtracted at the beginning cannot be folded: the zero padding of
  the head comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from restort.export.graph import Array, GraphBuilder
from restort.export.pixels import PixelIndices
from restort.models.spec import ElanSpec

BATCH_NORM_EPSILON = 1e-5


class ElanGraph:
    """Emits the nodes of one ELAN into a builder."""

    def __init__(self, graph: GraphBuilder, spec: ElanSpec, state: Mapping[str, Array]) -> None:
        self.graph, self.spec, self.state = graph, spec, state
        self.pixels = PixelIndices(graph)

    def emit(self) -> str:
        """Emit all nodes, from 'input', and return the value of the last one."""
        g, spec = self.graph, self.spec
        with g.section("head"):
            weight, bias = self.state["head.0.weight"] * spec.value_range, self.state["head.0.bias"]
            x = head = g.conv(self._centred("input"), weight, bias)
        for group in range(spec.groups):
            with g.section(f"body.{group}"):
                x = self._group(g.enter(x), group)
            x = g.call(x, f"body.{group}")
        with g.section("tail"):
            return self._tail(g.op("Add", g.enter(x), g.enter(head)))

    def _group(self, x: str, group: int) -> str:
        """Emit one ELAB, whose blocks share the attention scores of the first."""
        g, scores = self.graph, list[str]()
        for i in range(self.spec.n_share + 1):
            with g.scope(f"body.{group}.{i}"):
                x = g.op("Add", self._lfe(x, f"body.{group}.modules_lfe.lfe_{i}"), x)
                with g.operator("RestortGMSA"):
                    name = f"body.{group}.modules_gmsa.gmsa_{i}"
                    attended = self._gmsa(x, name, group % 2 == 1, scores)
                x = g.op("Add", attended, x)
        return x

    def _centred(self, x: str) -> str:
        """Subtract the mean colour, in [0, 1]; an addition is in the precision of the input."""
        g = self.graph
        weight, bias = self.state["sub_mean.weight"], self.state["sub_mean.bias"] / self.spec.value_range
        if np.array_equal(weight[:, :, 0, 0], np.eye(len(weight))):
            with g.at(g.ports):
                x = g.op("Add", x, g.weight(bias.reshape(1, -1, 1, 1)))
            return g.enter(x)
        return g.conv(g.enter(x), weight, bias)

    def _tail(self, x: str) -> str:
        """Emit the tail, pixel shuffle and add_mean, in [0, 1].

        The division by the colour range moves into the weights, except in fp16, where they would become subnormal.
        """
        g, spec = self.graph, self.spec
        mix = self.state["add_mean.weight"][:, :, 0, 0].astype(np.float64)
        weight, bias = self.state["tail.0.weight"], self.state["tail.0.bias"]
        weight = np.einsum("dc,csikl->dsikl", mix, weight.reshape(spec.colors, -1, *weight.shape[1:]))
        bias = mix @ bias.reshape(spec.colors, -1) + self.state["add_mean.bias"][:, None]
        late = g.precision == "fp16" and spec.value_range != 1
        factor = 1.0 if late else 1 / spec.value_range
        x = g.conv(x, weight.reshape(-1, *weight.shape[2:]) * factor, bias.reshape(-1) * factor)
        x = g.leave(x)
        if late:
            with g.at(g.ports):
                x = g.op("Mul", x, g.weight(np.array(1 / spec.value_range)))
        return g.op("DepthToSpace", x, blocksize=spec.scale, mode="CRD") if spec.scale > 1 else x

    def _lfe(self, x: str, name: str) -> str:
        with self.graph.operator("RestortLFE"):
            y = self.graph.op("Relu", self._shift_conv(x, f"{name}.conv0.shift_conv"))
            return self._shift_conv(y, f"{name}.conv1.shift_conv")

    def _shift_conv(self, x: str, name: str) -> str:
        """Emit the depthwise convolution with the stored kernel, whatever it holds, then the 1x1 convolution."""
        g, kernel = self.graph, self.state[f"{name}.weight"]
        x = g.conv(x, kernel, groups=len(kernel))
        layer = f"{name}.conv1x1"
        return g.conv(x, self.state[f"{layer}.weight"], self.state[f"{layer}.bias"], layer=layer)

    def _projection(self, name: str) -> tuple[Array, Array]:
        """Return weight and bias of project_inp with its BatchNorm folded in, in float64."""
        weight, bias, gain, offset, mean, variance = (
            self.state[f"{name}.project_inp.{part}"].astype(np.float64)
            for part in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
        )
        factor = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
        return weight * factor[:, None, None, None], (bias - mean) * factor + offset

    def _gmsa(self, x: str, name: str, rolled: bool, scores: list[str]) -> str:
        """Window attention; fills `scores` where it is empty (the first block of a group), else uses them.

        All pixels are rows of a table, and windows are gathered from it.
        """
        g, sizes, pixels = self.graph, self.spec.window_sizes, self.pixels
        x = g.conv(x, *self._projection(name), layer=f"{name}.project_inp.0")
        part = self.spec.channels // len(sizes)
        first = not scores
        step = 2 if first else 1  # q and v of each window size, or v alone
        parts = step * len(sizes)
        x = g.op("Transpose", x, perm=[0, 2, 3, 1])
        x = g.op("Reshape", x, g.integers([-1, part]))
        attended = []
        for i, size in enumerate(sizes):
            if first:
                q = g.op("Gather", x, pixels.parts(size, rolled, parts, step * i), axis=0)
                scores.append(self._scores(q))
            v = g.op("Gather", x, pixels.parts(size, rolled, parts, step * i + step - 1), axis=0)
            attended.append(g.op("Reshape", g.op("MatMul", scores[i], v), g.integers([-1, part])))
        x = g.op("Gather", g.op("Concat", *attended, axis=0), pixels.back(sizes, rolled), axis=0)
        x = g.op("Reshape", x, pixels.nhwc(self.spec.channels))
        x = g.op("Transpose", x, perm=[0, 3, 1, 2])
        layer = f"{name}.project_out"
        return g.conv(x, self.state[f"{layer}.weight"], self.state[f"{layer}.bias"], layer=layer)

    def _scores(self, q: str) -> str:
        """softmax(q q^T) of q (windows, pixels, channels), in float32: unscaled, its sums overflow float16."""
        g = self.graph
        q = g.to_float32(q)
        return g.from_float32(
            g.op("Softmax", g.op("MatMul", q, g.op("Transpose", q, perm=[0, 2, 1])), axis=-1)
        )
