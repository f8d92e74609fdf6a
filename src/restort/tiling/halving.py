"""Recovery when a backend runs out of memory: smaller batches, then smaller tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain

import numpy as np

from restort.errors import OutOfMemory
from restort.models.spec import Spec
from restort.tiling.tiles import DEFAULT_OVERLAP, Network, run_tiled, tile_layout
from restort.utils.array_types import Float32
from restort.utils.integers import cdiv, round_up

LEAST_EDGE = 64
"""Smallest edge of a tile in pixels. Below it a result would consist of seams, and other programs use up the memory."""


class Halving:
    """A network that divides its input when the wrapped network runs out of memory.

    When `network` raises MemoryError (restort.errors.OutOfMemory is one), the pictures of a batch run one by one. When
    that is not enough, a picture runs in blended tiles of half its longer edge, these again in halves, and so on. A
    size that failed is not tried again: make one object per picture.

    tell   called with a sentence for every size that failed.

    Raises OutOfMemory when tiles of LEAST_EDGE do not fit.
    """

    def __init__(
        self,
        network: Network,
        spec: Spec,
        overlap: int | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self._network, self._spec, self._overlap, self._tell = network, spec, overlap, tell
        self._too_many: float = float("inf")  # pixels of a batch that did not fit
        self._warned: set[int] = set()  # edges of tiles

    def stream(self, tiles: Iterable[Float32]) -> Generator[Float32, None, None]:
        """Yield the results of `tiles` in order, through the `stream` of the network until memory runs out."""
        own = getattr(self._network, "stream", None)
        sent: deque[Float32] = deque()
        rest = iter(tiles)
        results = None if own is None else own(_noted(rest, sent))
        if results is not None:
            try:
                for y in results:
                    sent.popleft()
                    yield y
                return
            except MemoryError:
                pass
            finally:
                results.close()
        for x in chain(sent, rest):
            yield self(x)

    def __call__(self, x: Float32, /) -> Float32:
        """Run the network: (N, C, H, W) -> (N, C', H * scale, W * scale)."""
        n, _, height, width = x.shape
        if n * height * width < self._too_many:
            try:
                return self._network(x)
            except MemoryError:
                self._too_many = n * height * width
            if (shrink := getattr(self._network, "shrink", None)) is not None:
                shrink()
        # After the handler, not in it: there the error keeps the frames, and so the arrays, of the failed run alive.
        if n > 1:
            return np.concatenate([self(np.ascontiguousarray(x[i : i + 1])) for i in range(n)])
        edge = round_up(cdiv(max(height, width), 2), self._spec.size_multiple)
        if edge < LEAST_EDGE:
            raise OutOfMemory(
                f"out of memory for a tile of {width}x{height} pixels, the smallest; close other programs"
            )
        if self._tell is not None and edge not in self._warned:
            self._warned.add(edge)
            self._tell(f"out of memory for {width}x{height} pixels; continuing with tiles of {edge}x{edge}")
        wanted = DEFAULT_OVERLAP[self._spec.architecture] if self._overlap is None else self._overlap
        multiple = self._spec.size_multiple
        overlap = min(wanted, edge // 2 // multiple * multiple)
        return run_tiled(self, x, tile_layout(height, width, self._spec, edge, overlap))


def _noted(tiles: Iterator[Float32], sent: deque[Float32]) -> Iterator[Float32]:
    """Pass tiles on and keep each in `sent` until its result has come."""
    for x in tiles:
        sent.append(x)
        yield x
