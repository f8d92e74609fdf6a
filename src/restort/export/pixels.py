"""Window partition and cyclic roll of ELAN as Gather indices, computed in the graph from the size of the input.

A picture lies as rows: pixel (n, y, x) is row (n * H + y) * W + x. The partition with its roll moves whole rows (or
equal parts of rows), so it is one Gather, whose index all blocks share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from restort.export.graph import GraphBuilder

P = ParamSpec("P")


class PixelIndices:
    """Emits int64 indices for an 'input' of (N, C, H, W); H and W are multiples of every window size."""

    def __init__(self, graph: GraphBuilder) -> None:
        self.graph = g = graph
        self.shape = g.op("Shape", "input")
        self.n, self.h, self.w = (g.op("Gather", self.shape, g.integers(i), axis=0) for i in (0, 2, 3))
        self.pixels = g.op("Mul", self.h, self.w)
        self.rows = g.op("Mul", self.n, self.pixels)
        self.range = self._once(self._range)
        self.windows = self._once(self._windows)
        self.parts = self._once(self._parts)
        self.nhwc = self._once(self._nhwc)
        self.back = self._once(self._back)
        self.first = g.op("Mul", self.range(self.n), self.pixels)  # (N,): the first row of each image

    def _once(self, emit: Callable[P, str]) -> Callable[P, str]:
        """Cache the value of `emit`, which would emit its nodes again; they belong to no single operator."""

        made: dict[object, str] = {}

        def emitted(*args: P.args, **named: P.kwargs) -> str:
            key = args, tuple(named.items())
            if key not in made:
                with self.graph.operator(None):
                    made[key] = emit(*args, **named)
            return made[key]

        return emitted

    def _nhwc(self, channels: int) -> str:
        """Emit the vector (N, H, W, channels)."""
        g = self.graph
        sizes = [g.op("Unsqueeze", size, g.integers([0])) for size in (self.n, self.h, self.w)]
        return g.op("Concat", *sizes, g.integers([channels]), axis=0)

    def _windows(self, size: int, rolled: bool) -> str:
        """Emit (windows, size * size): the row of each pixel of each window, `rolled` by half a window or not."""
        g = self.graph
        offset = size // 2 if rolled else 0
        y = g.op("Mul", self._rolled(self.h, offset), self.w)
        y = g.op("Reshape", y, g.integers([-1, 1, size, 1]))
        x = g.op("Reshape", self._rolled(self.w, offset), g.integers([1, -1, 1, size]))
        pixel = g.op("Add", y, x)  # (H / size, W / size, size, size)
        row = g.op("Add", self._column(self.first, 4), pixel)
        return g.op("Reshape", row, g.integers([-1, size * size]))

    def _parts(self, size: int, rolled: bool, parts: int, part: int) -> str:
        """Emit `windows` for rows that are cut into `parts` equal parts; the result points to number `part`."""
        g = self.graph
        rows = g.op("Mul", self.windows(size, rolled), g.integers(parts))
        return g.op("Add", rows, g.integers(part)) if part else rows

    def _back(self, sizes: tuple[int, ...], rolled: bool) -> str:
        """Emit (rows, len(sizes)): where each row lies in the windows of each size, sizes stacked.

        This is the inverse of the permutation that cuts the windows, found by scattering the numbers 0, 1, 2, ...
        """
        g, count = self.graph, len(sizes)
        there = [self.parts(size, rolled, count, i) for i, size in enumerate(sizes)]
        there = [g.op("Reshape", rows, g.integers([-1])) for rows in there]
        numbers = self.range(g.op("Mul", self.rows, g.integers(count)))
        back = g.op("ScatterElements", numbers, g.op("Concat", *there, axis=0), numbers, axis=0)
        return g.op("Reshape", back, g.integers([-1, count]))

    def _range(self, length: str) -> str:
        return self.graph.op("Range", self.graph.integers(0), length, self.graph.integers(1))

    def _rolled(self, length: str, offset: int) -> str:
        """Emit (i + offset) mod length for every i below length."""
        g = self.graph
        if not offset:
            return self.range(length)
        return g.op("Mod", g.op("Add", self.range(length), g.integers(offset)), length)

    def _column(self, x: str, trailing: int) -> str:
        """Append `trailing` axes of size 1 to a vector."""
        return self.graph.op("Reshape", x, self.graph.integers([-1] + [1] * trailing))
