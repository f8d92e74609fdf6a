"""The ONNX graph of an ELAN, node by node from its weights.

Source of the equations: Zhang et al., ECCV 2022, sections 3.1 to 3.3, as in models/elan.py. The residual stream
is a picture (N, C, H, W): 1x1 convolutions, the shift (a depthwise convolution with its stored kernel) and the
residual sums follow one another, which every tool fuses and runs channels last. Only attention sees the picture
as rows of channels, (N * H * W, C): it moves them (see pixels.py). BatchNorm is folded into the projection
before it, the colour range into head and tail, and the mean colour that is added at the end into the tail's
bias; the one that is subtracted at the beginning cannot be, because the head's zero padding comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from restort.export.form import Form
from restort.export.graph import Array, GraphBuilder
from restort.export.pixels import PixelIndices
from restort.export.windows import Windows
from restort.models.spec import ElanSpec

BATCH_NORM_EPSILON = 1e-5


class ElanGraph:
    """Emits the nodes of one ELAN into a builder."""

    def __init__(self, graph: GraphBuilder, spec: ElanSpec, state: Mapping[str, Array], form: Form) -> None:
        self.graph, self.spec, self.state = graph, spec, state
        self.windows: Windows | PixelIndices = (
            Windows(graph) if form.windows == "shuffle" else PixelIndices(graph)
        )

    def emit(self) -> str:
        """All nodes, from 'input'; returns the name of the last one's value."""
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
        """One ELAB: blocks that share the scores of the first."""
        g, scores = self.graph, list[str]()
        for i in range(self.spec.n_share + 1):
            with g.scope(f"body.{group}.{i}"):
                x = g.op("Add", self._lfe(x, f"body.{group}.modules_lfe.lfe_{i}"), x)
                attended = self._gmsa(x, f"body.{group}.modules_gmsa.gmsa_{i}", group % 2 == 1, scores)
                x = g.op("Add", attended, x)
        return x

    def _centred(self, x: str) -> str:
        """sub_mean in [0, 1] instead of [0, value_range], in the precision of the input where it is an addition."""
        g = self.graph
        weight, bias = self.state["sub_mean.weight"], self.state["sub_mean.bias"] / self.spec.value_range
        if np.array_equal(weight[:, :, 0, 0], np.eye(len(weight))):
            with g.at(g.ports):
                x = g.op("Add", x, g.weight(bias.reshape(1, -1, 1, 1)))
            return g.enter(x)
        return g.conv(g.enter(x), weight, bias)

    def _tail(self, x: str) -> str:
        """Tail, pixel shuffle and add_mean, in [0, 1].

        The division by the range goes into the weights, except in fp16, where they would become subnormal.
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
        y = self.graph.op("Relu", self._shift_conv(x, f"{name}.conv0.shift_conv"))
        return self._shift_conv(y, f"{name}.conv1.shift_conv")

    def _shift_conv(self, x: str, name: str) -> str:
        """The stored depthwise kernel, whatever it holds, then the 1x1 convolution."""
        g, kernel = self.graph, self.state[f"{name}.weight"]
        x = g.conv(x, kernel, groups=len(kernel))
        return g.conv(x, self.state[f"{name}.conv1x1.weight"], self.state[f"{name}.conv1x1.bias"])

    def _projection(self, name: str) -> tuple[Array, Array]:
        """project_inp with its BatchNorm folded in, in float64."""
        weight, bias, gain, offset, mean, variance = (
            self.state[f"{name}.project_inp.{part}"].astype(np.float64)
            for part in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
        )
        factor = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
        return weight * factor[:, None, None, None], (bias - mean) * factor + offset

    def _gmsa(self, x: str, name: str, rolled: bool, scores: list[str]) -> str:
        """Window attention; fills `scores` where it is empty (the first block of a group), else uses them."""
        g = self.graph
        x = g.conv(x, *self._projection(name))
        attend = self._by_rows if isinstance(self.windows, PixelIndices) else self._by_shuffles
        x = attend(x, rolled, scores)
        return g.conv(x, self.state[f"{name}.project_out.weight"], self.state[f"{name}.project_out.bias"])

    def _by_rows(self, x: str, rolled: bool, scores: list[str]) -> str:
        """All pixels as rows of a table, from which windows are gathered."""
        g, sizes, pixels = self.graph, self.spec.window_sizes, self.windows
        assert isinstance(pixels, PixelIndices)
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
        return g.op("Transpose", x, perm=[0, 3, 1, 2])

    def _by_shuffles(self, x: str, rolled: bool, scores: list[str]) -> str:
        """The channels of each window size as pictures, cut into windows one by one."""
        g, sizes, windows = self.graph, self.spec.window_sizes, self.windows
        assert isinstance(windows, Windows)
        part = self.spec.channels // len(sizes)
        first = not scores
        width = 2 * part if first else part
        attended = []
        for i, (size, piece) in enumerate(zip(sizes, g.split(x, [width] * len(sizes), axis=1), strict=True)):
            v = windows.cut(piece, width, size, rolled)
            if first:
                q, v = g.split(v, [part] * 2, axis=3)
                scores.append(self._scores(q))
            attended.append(windows.join(g.op("MatMul", scores[i], v), part, size, rolled))
        return g.op("Concat", *attended, axis=1)

    def _scores(self, q: str) -> str:
        """softmax(q q^T), which is not scaled: its sums overflow float16."""
        g = self.graph
        wide = g.widen(q)
        rank = 3 if isinstance(self.windows, PixelIndices) else 4
        swapped = g.op("Transpose", wide, perm=[*range(rank - 2), rank - 1, rank - 2])
        return g.narrow(g.op("Softmax", g.op("MatMul", wide, swapped), axis=-1))
