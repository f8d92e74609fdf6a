"""Large pictures in tiles of one fixed shape, overlapped and blended without seams.

A layout puts tiles of one height and width on the picture at multiples of the network's size multiple, so that the
windows of a network lie in a tile as they lie in the whole picture. It spreads the tiles evenly: neighbours overlap by
at least the overlap asked for. In the middle of each overlap the result changes from one tile to the next along a
raised cosine as wide as half the overlap. The outer quarter of the overlap, where a tile knows its surroundings worst,
is discarded. So every output pixel is made of at most two tiles per axis, with weights r and 1 - r.

`stream_tiled` holds one row of tiles at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias

import numpy as np

from restort.errors import RestortError, UsageError
from restort.models.memory_estimate import bytes_per_pixel
from restort.models.spec import Spec
from restort.tiling.padding import reflect_index
from restort.tiling.rows import take, take_rows
from restort.utils.array_types import Array, Float32, Rows
from restort.utils.integers import cdiv, round_up
from restort.utils.memory import available_memory

AUTO_EDGES = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Edges of the tiles that `auto` may choose, in pixels: few and fixed, so that engines of fixed shapes serve them."""

DEFAULT_OVERLAP = {"elan": 32, "restormer": 32}
"""Smallest overlap of neighbouring tiles, in pixels of the input.

Measured for ELAN-light x4 on Set14 against the whole picture, 8 bit: at least 62.8 dB with tiles of 128 and
55.5 dB with tiles of 96 (tests/tiling/test_tiles.py with RESTORT_ALL_OF_SET14=1). Restormer's attention sums over
all pixels of its input, so its tiles differ from the whole picture at any overlap.
"""

WRAP = {"elan": 16, "restormer": 0}
"""Pixels at each edge of the picture that a border tile shows to the network beside the opposite edge.

ELAN rolls its input cyclically, so that each edge sees the opposite one. A tile at the top therefore ends with the last
rows of the picture instead of its own, which would be discarded anyway: its edge then sees what it sees when the
network runs over the whole picture.
"""

TileOption: TypeAlias = int | Literal["auto", "exact"] | None
Progress: TypeAlias = Callable[[int, int], None]


class Network(Protocol):
    """A function of tiles: float32 (N, C, H, W) in [0, 1] -> float32 (N, C', H * scale, W * scale).

    A network with a method `stream(arrays)`, which yields the results of an iterable in order, gets all tiles through
    it and may take the next tile while it computes one.
    """

    def __call__(self, x: Float32, /) -> Float32: ...


@dataclass(frozen=True)
class Axis:
    """Tiles of `tile` pixels along one axis of `size` pixels, padded to `padded`.

    Tile i begins at pixel `starts[i]`. Between tiles i and i + 1 the result changes from one to the other in the
    pixels `seams[i][0] <= p < seams[i][1]`. The last `wrap` pixels of the first tile are the last pixels of the axis,
    and the first `wrap` pixels of the last tile are the first pixels of the axis (`WRAP`).
    """

    size: int
    padded: int
    tile: int
    starts: tuple[int, ...]
    seams: tuple[tuple[int, int], ...]
    wrap: int = 0

    def index(self, i: int) -> Array:
        """Pixels of the picture that tile i consists of: (tile,) int."""
        pixels = np.arange(self.starts[i], self.starts[i] + self.tile)
        if self.wrap and len(self.starts) > 1:
            if i == 0:
                pixels[-self.wrap :] = np.arange(self.padded - self.wrap, self.padded)
            elif i == len(self.starts) - 1:
                pixels[: self.wrap] = np.arange(self.wrap)
        return reflect_index(self.size, self.padded)[pixels]


@dataclass(frozen=True)
class TileLayout:
    """How a picture of `rows.size` x `columns.size` pixels is cut into tiles of one shape.

    rows, columns   tiles along the height and the width, in pixels of the input
    scale           of the network
    overlap         smallest overlap of neighbours, in pixels of the input
    """

    rows: Axis
    columns: Axis
    scale: int
    overlap: int

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(height, width) of every tile, in pixels of the input."""
        return self.rows.tile, self.columns.tile

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def whole(self) -> bool:
        """Whether one tile holds the whole picture."""
        return self.count == 1


def tile_axis(
    size: int, tile: int, overlap: int, multiple: int, *, wrap: int = 0, fixed: bool = False
) -> Axis:
    """Place tiles along one axis of `size` pixels.

    `tile`, `overlap` and `wrap` are multiples of `multiple`, and 0 <= overlap <= tile / 2. An axis no longer than a
    tile gets one tile, as long as the axis rounded up to `multiple`, or, with `fixed`, a full tile.
    """
    padded = round_up(size, multiple)
    if padded <= tile:
        padded = tile if fixed else padded
        return Axis(size, padded, padded, (0,), ())
    length = padded + 2 * wrap  # as if the wrapped pixels lay beyond the ends
    count = 1 + cdiv(length - tile, tile - overlap)
    room = (length - tile) // multiple
    places = [multiple * (i * room // (count - 1)) - wrap for i in range(count)]
    middles = [(a + tile + b) // 2 for a, b in pairwise(places)]
    # Half the overlap, and never so wide that two seams meet: no pixel may consist of three tiles.
    ramp = min([overlap // 2, *(b - a for a, b in pairwise(middles))])
    seams = tuple((middle - ramp // 2, middle - ramp // 2 + ramp) for middle in middles)
    starts = tuple(min(max(place, 0), padded - tile) for place in places)
    return Axis(size, padded, tile, starts, seams, wrap)


def tile_layout(
    height: int,
    width: int,
    spec: Spec,
    tile: TileOption = "auto",
    overlap: int | None = None,
    memory_bytes: int | None = None,
    *,
    batch: int = 1,
    fixed: bool = False,
    pixel_bytes: int | None = None,
) -> TileLayout:
    """Decide how to cut a picture of `height` x `width` pixels for the network `spec`.

    tile          N: square tiles of N pixels, rounded up to the size multiple of the network. 'auto': the whole
                  picture if its estimated memory (`bytes_per_pixel`) fits into `memory_bytes`, otherwise the largest
                  edge of `AUTO_EDGES` that fits (the smallest if none does). None or 'exact': the whole picture
                  ('exact' divides it into strips later: restort.inference.exact).
    overlap       smallest overlap of neighbours in pixels of the input, rounded up to the size multiple; None for
                  `DEFAULT_OVERLAP`. It is never more than half a tile.
    memory_bytes  memory for one run; None for half of the free memory.
    batch         number of pictures in one run.
    fixed         pad pictures smaller than a tile to the full tile, so that all runs have one shape.
    pixel_bytes   bytes that a run needs per pixel of the input; None for the estimate `bytes_per_pixel`.

    Raises UsageError for a tile or an overlap that is out of range.
    """
    multiple = spec.size_multiple
    if tile is None or tile == "exact":
        edge = max(round_up(height, multiple), round_up(width, multiple))
        fixed = False
    elif tile == "auto":
        edge = _auto_edge(height, width, spec, memory_bytes, (pixel_bytes or bytes_per_pixel(spec)) * batch)
    else:
        smallest = 4 * multiple
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < smallest:
            raise UsageError(
                f"a tile of {tile} is too small for this network; use --tile {smallest} or more, auto, exact or none"
            )
        edge = round_up(tile, multiple)
    limit = edge // 2 // multiple * multiple
    if overlap is None:
        overlap = min(DEFAULT_OVERLAP[spec.architecture], limit)
    elif overlap < 0:
        raise UsageError(f"an overlap of {overlap} is negative; use --overlap 0 or more")
    else:
        overlap = round_up(overlap, multiple)
        several = max(round_up(height, multiple), round_up(width, multiple)) > edge
        if overlap > limit and several:
            raise UsageError(
                f"an overlap of {overlap} is more than half of a tile of {edge}; "
                f"use --overlap {limit} or less, or larger tiles"
            )
        overlap = min(overlap, limit)
    wrap = WRAP[spec.architecture]
    rows = tile_axis(height, edge, overlap, multiple, wrap=wrap, fixed=fixed)
    columns = tile_axis(width, edge, overlap, multiple, wrap=wrap, fixed=fixed)
    return TileLayout(rows, columns, spec.scale, overlap)


def _auto_edge(height: int, width: int, spec: Spec, memory_bytes: int | None, each: int) -> int:
    """Choose the edge for 'auto'; `each` is the memory per pixel in bytes."""
    budget = available_memory() // 2 if memory_bytes is None else memory_bytes
    padded = [round_up(n, spec.size_multiple) for n in (height, width)]
    pixels = budget / each
    if padded[0] * padded[1] <= pixels:
        return max(padded)
    edges = [round_up(edge, spec.size_multiple) for edge in AUTO_EDGES]
    fitting = [edge for edge in edges if min(edge, padded[0]) * min(edge, padded[1]) <= pixels]
    return max(fitting, default=edges[0])


def run_tiled(network: Network, x: Float32, layout: TileLayout, progress: Progress | None = None) -> Float32:
    """Run a network over a picture in tiles: (N, C, H, W) -> (N, C', H * scale, W * scale), not clipped.

    H and W are those of the layout, of any size: padding and cropping happen here. `progress(done, total)` is called
    after each tile.
    """
    result: Float32 | None = None
    for top, band in stream_tiled(network, x, layout, progress):
        if layout.whole:
            return np.ascontiguousarray(band)
        if result is None:
            shape = (*band.shape[:2], layout.rows.size * layout.scale, layout.columns.size * layout.scale)
            result = np.empty(shape, np.float32)
        result[:, :, top : top + band.shape[2]] = band
    assert result is not None
    return result


def stream_tiled(
    network: Network, x: Float32 | Rows, layout: TileLayout, progress: Progress | None = None
) -> Iterator[tuple[int, Float32]]:
    """Like `run_tiled`, but yield (top, band) from top to bottom; a band is (N, C', rows, W * scale) and finished."""
    if len(x.shape) != 4 or x.shape[2:] != (layout.rows.size, layout.columns.size):
        raise ValueError(
            f"an array of shape {x.shape} for a layout of {layout.rows.size} x {layout.columns.size} pixels"
        )
    with closing(_results(network, _tiles(x, layout))) as results:
        yield from _bands(results, x.shape, layout, progress)


def _tiles(x: Float32 | Rows, layout: TileLayout) -> Iterator[Float32]:
    """Yield all tiles, row by row: (N, C, tile height, tile width), contiguous."""
    for i in range(len(layout.rows.starts)):
        band = take_rows(x, layout.rows.index(i))
        for j in range(len(layout.columns.starts)):
            yield np.ascontiguousarray(take(band, layout.columns.index(j), axis=3))


def _results(network: Network, tiles: Iterator[Float32]) -> Generator[Float32, None, None]:
    """Yield the result of each tile, through `network.stream` where there is one."""
    stream = getattr(network, "stream", None)
    results = None if stream is None else stream(tiles)
    if results is None:
        for tile in tiles:
            yield network(tile)
        return
    try:
        yield from results
    finally:
        results.close()  # stops what is still in flight after an error


def _bands(
    results: Iterator[Float32], shape: tuple[int, ...], layout: TileLayout, progress: Progress | None
) -> Iterator[tuple[int, Float32]]:
    """Yield (top, finished rows) from the results of all tiles, taken row by row."""
    scale, rows = layout.scale, layout.rows
    tail: Array | None = None  # the seam as the row of tiles above computed it
    written = 0
    for i in range(len(rows.starts)):
        strip = _row_of_tiles(results, shape, layout, i, progress)
        origin = rows.starts[i] * scale
        begin, end = _part(rows, i, scale)
        if tail is not None:
            seam = strip[:, :, begin - origin : begin - origin + tail.shape[2]]
            tail += _ramp(tail.shape[2])[:, None] * (seam - tail)
            strip[:, :, begin - origin : begin - origin + tail.shape[2]] = tail
        if i < len(rows.seams):
            seam_begin, seam_end = (edge * scale for edge in rows.seams[i])
            tail = strip[:, :, seam_begin - origin : seam_end - origin].copy()
            end = seam_begin
        band = strip[:, :, begin - origin : min(end, rows.size * scale) - origin]
        if band.shape[2]:
            yield written, band
        written += band.shape[2]


def _row_of_tiles(
    results: Iterator[Float32], shape: tuple[int, ...], layout: TileLayout, i: int, progress: Progress | None
) -> Float32:
    """Blend the next tiles into one row: (N, C', tile height * scale, W * scale)."""
    columns, scale = layout.columns, layout.scale
    strip: Float32 | None = None
    for j, left in enumerate(columns.starts):
        result = next(results)
        expected = (shape[0], layout.rows.tile * scale, columns.tile * scale)
        if result.ndim != 4 or (result.shape[0], *result.shape[2:]) != expected:
            raise RestortError(
                f"the backend returned an array of shape {list(result.shape)} for a tile of shape "
                f"{[*shape[:2], *layout.tile_shape]}; this is a bug: use another --backend and report it"
            )
        if progress is not None:
            progress(i * len(columns.starts) + j + 1, layout.count)
        if len(columns.starts) == 1:
            return np.array(result[..., : columns.size * scale])
        if strip is None:
            strip = np.empty((*result.shape[:3], columns.padded * scale), np.float32)
        origin = left * scale
        begin, end = _part(columns, j, scale)
        if j:
            seam_end = columns.seams[j - 1][1] * scale
            seam = strip[..., begin:seam_end]
            seam += _ramp(seam_end - begin) * (result[..., begin - origin : seam_end - origin] - seam)
            begin = seam_end
        strip[..., begin:end] = result[..., begin - origin : end - origin]
    assert strip is not None
    return strip[..., : columns.size * scale]


def _part(axis: Axis, i: int, scale: int) -> tuple[int, int]:
    """Output pixels that tile i contributes to, the seams before and after it included: (begin, end)."""
    begin = axis.seams[i - 1][0] if i else 0
    end = axis.seams[i][1] if i < len(axis.seams) else axis.padded
    return begin * scale, end * scale


def _ramp(length: int) -> Float32:
    """Weights of the later tile across a seam: (length,), a raised cosine from 0 to 1."""
    phase = (np.arange(length) + 0.5) / max(length, 1)
    return (0.5 - 0.5 * np.cos(np.pi * phase)).astype(np.float32)
