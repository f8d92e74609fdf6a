"""Going on where a backend's memory runs out: the same array in smaller parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain

import numpy as np

from restort.errors import OutOfMemory
from restort.models.spec import Spec
from restort.tiling.padding import round_up
from restort.tiling.tiles import DEFAULT_OVERLAP, Network, plan, run_tiled
from restort.utils.array_types import Float32

LEAST_EDGE = 64
"""Tiles are not halved below this: such results would be made of seams, and memory that short is another's fault."""


class Halving:
    """A network for tiles that never runs out of memory while halving a tile can help.

    Where `network` raises MemoryError (restort.errors.OutOfMemory is one), the images of a batch are run one by one,
    and an image is run in tiles of half the longer edge, blended as tiles are (restort.tiling.tiles); where that is
    not enough, in halves of these. Sizes that failed are not tried again, so one object serves one picture.

    Raises OutOfMemory when tiles of LEAST_EDGE do not fit either. `tell` gets a sentence for every size that failed.
    """

    def __init__(
        self,
        network: Network,
        spec: Spec,
        overlap: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._network, self._spec, self._overlap, self._tell = network, spec, overlap, tell
        self._too_many: float = float("inf")  # pixels of a batch that did not fit
        self._told: set[int] = set()  # edges of tiles

    def stream(self, tiles: Iterable[Float32]) -> Generator[Float32, None, None]:
        """The results of `tiles` in their order: through the network's own `stream` while the memory is enough."""
        own = getattr(self._network, "stream", None)
        sent: deque[Float32] = deque()
        rest = iter(tiles)
        if own is not None:
            results = own(_noted(rest, sent))
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
        n, _, height, width = x.shape
        if n * height * width < self._too_many:
            try:
                return self._network(x)
            except MemoryError:
                self._too_many = n * height * width
        # Outside of the handler: there the error keeps alive what it was raised over.
        if n > 1:
            return np.concatenate([self(np.ascontiguousarray(x[i : i + 1])) for i in range(n)])
        edge = round_up(-(-max(height, width) // 2), self._spec.size_multiple)
        if edge < LEAST_EDGE:
            raise OutOfMemory(
                f"the memory is not enough for {width}x{height} pixels, and smaller tiles would be all seams; free some"
            )
        if self._tell is not None and edge not in self._told:
            self._told.add(edge)
            self._tell(
                f"the memory is not enough for {width}x{height} pixels at once; going on with tiles of {edge}x{edge}"
            )
        wanted = DEFAULT_OVERLAP[self._spec.architecture] if self._overlap is None else self._overlap
        multiple = self._spec.size_multiple
        overlap = min(wanted, edge // 2 // multiple * multiple)
        return run_tiled(self, x, plan(height, width, self._spec, edge, overlap))


def _noted(tiles: Iterator[Float32], sent: deque[Float32]) -> Iterator[Float32]:
    for x in tiles:
        sent.append(x)
        yield x
