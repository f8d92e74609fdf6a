"""ELAN's windows by reshaping and transposing alone, without index arithmetic.

Some tools read such a graph where they fail on indices that are computed (restort.export.pixels), or move the pixels
faster. The window partition is SpaceToDepth, whose channels are the pixels of a window; the cyclic roll by half a
window (ELAN, ECCV 2022, section 3.3) is two slices and a concatenation along each axis.
"""

from __future__ import annotations

from functools import lru_cache

from restort.export.graph import GraphBuilder

END = 2**31 - 1


class Windows:
    """Cuts pictures (N, C, H, W) into windows and puts them together; H and W are multiples of every window size."""

    def __init__(self, graph: GraphBuilder) -> None:
        self.graph = g = graph
        shape = g.op("Shape", "input")
        self.n, self.h, self.w = (g.op("Gather", shape, g.integers([i]), axis=0) for i in (0, 2, 3))
        self.shape = lru_cache(None)(
            self._shape
        )  # per instance, because each call would make the same nodes again

    def cut(self, x: str, channels: int, size: int, rolled: bool) -> str:
        """(N, channels, H, W) -> (N, windows, size * size, channels)."""
        g = self.graph
        x = self._roll(x, size // 2) if rolled else x
        x = g.op("SpaceToDepth", x, blocksize=size)
        x = g.op("Reshape", x, g.integers([0, size * size, channels, -1]))
        return g.op("Transpose", x, perm=[0, 3, 1, 2])

    def join(self, x: str, channels: int, size: int, rolled: bool) -> str:
        """The inverse of `cut`."""
        g = self.graph
        x = g.op("Transpose", x, perm=[0, 2, 3, 1])
        x = g.op("Reshape", x, self.shape(channels, size))
        x = g.op("DepthToSpace", x, blocksize=size, mode="DCR")
        return self._roll(x, -(size // 2)) if rolled else x

    def _shape(self, channels: int, size: int) -> str:
        """The vector (N, channels * size * size, H / size, W / size)."""
        g = self.graph
        sides = [g.op("Div", side, g.integers([size])) for side in (self.h, self.w)]
        return g.op("Concat", self.n, g.integers([channels * size * size]), *sides, axis=0)

    def _roll(self, x: str, offset: int) -> str:
        """Pixel i becomes pixel i + offset, cyclically, along both axes; a negative offset the other way."""
        g = self.graph
        for axis in (2, 3):
            cut, axes = g.integers([offset]), g.integers([axis])
            first = g.op("Slice", x, cut, g.integers([END]), axes)
            x = g.op("Concat", first, g.op("Slice", x, g.integers([0]), cut, axes), axis=axis)
        return x
