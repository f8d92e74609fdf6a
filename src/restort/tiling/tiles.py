"""Large pictures in tiles of one fixed shape, overlapped and blended without seams.

A plan lays tiles of the same height and width over the picture at multiples of the network's size multiple,
so that the windows of a network lie in a tile as they lie in the whole picture, and spreads them evenly, so
that neighbours overlap by at least the overlap asked for. In the middle of each overlap the result goes over
from one tile to the next along a raised cosine as wide as half the overlap; the outer quarter of the
overlap, where a tile knows its surroundings worst, is discarded. Every output pixel is thus made of at most
two tiles per axis with weights r and 1 - r.

Only one row of tiles is held at a time (`stream_tiled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias

import numpy as np

from restort.errors import RestortError, UsageError
from restort.models.memory_estimate import bytes_per_pixel
from restort.models.spec import Spec
from restort.tiling.padding import reflect_index, round_up
from restort.utils.array_types import Array, Float32
from restort.utils.memory import available_memory

LADDER = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Edges of the tiles that `auto` may choose: few and fixed, so that engines of fixed shapes can serve
them."""

DEFAULT_OVERLAP = {"elan": 32, "restormer": 32}
"""Pixels of the input by which neighbouring tiles overlap at least.

Measured for ELAN-light x4 on Set14 against the whole picture, 8 bit: at least 62.8 dB with tiles of 128 and
55.5 dB with tiles of 96 (tests/tiling/test_tiles.py with RESTORT_ALL_OF_SET14=1). Restormer's attention sums over
all it is given, so its tiles differ from the whole at any overlap.
"""

WRAP = {"elan": 16, "restormer": 0}
"""Pixels at the picture's edges that are shown to the network together with the opposite edge.

ELAN rolls the picture cyclically, so that each edge sees the opposite one. A tile at the top therefore ends
with the last rows of the picture instead of its own, which are discarded anyhow: then the edge sees what it
sees when the network runs over the whole picture.
"""

TileOption: TypeAlias = int | Literal["auto", "exact"] | None
Progress: TypeAlias = Callable[[int, int], None]


class Network(Protocol):
    """What tiles need of a backend's runner: float32 (N, C, H, W) -> float32 (N, C', H * scale, W *
    scale).

    One that also has `stream(arrays)`, the results of an iterable in its order, is given all tiles that way: it
    may then take the next tile while it computes one.
    """

    def __call__(self, x: Float32, /) -> Float32: ...


@dataclass(frozen=True)
class Axis:
    """Tiles of `tile` pixels along one axis of `size` pixels, padded to `padded`.

    `starts[i]` is the pixel that tile i begins with; between tiles i and i + 1 the result goes over from the
    one to the other in the pixels from `seams[i][0]` up to, not including, `seams[i][1]`. The last `wrap`
    pixels of the first tile are those of the end of the axis instead, and the first of the last tile those
    of the beginning (`WRAP`).
    """

    size: int
    padded: int
    tile: int
    starts: tuple[int, ...]
    seams: tuple[tuple[int, int], ...]
    wrap: int = 0

    def index(self, i: int) -> Array:
        """(tile,) int: which pixels of the picture tile i is made of."""
        pixels = np.arange(self.starts[i], self.starts[i] + self.tile)
        if self.wrap and len(self.starts) > 1:
            if i == 0:
                pixels[-self.wrap :] = np.arange(self.padded - self.wrap, self.padded)
            elif i == len(self.starts) - 1:
                pixels[: self.wrap] = np.arange(self.wrap)
        return reflect_index(self.size, self.padded)[pixels]


@dataclass(frozen=True)
class TilePlan:
    """How a picture of `rows.size` x `columns.size` pixels is cut; every tile has the shape `tile_shape`."""

    rows: Axis
    columns: Axis
    scale: int
    overlap: int

    @property
    def tile_shape(self) -> tuple[int, int]:
        return self.rows.tile, self.columns.tile

    @property
    def count(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def whole(self) -> bool:
        """Whether the picture is one tile, so that the result is the network's own on the whole picture."""
        return self.count == 1


def lay_out(size: int, tile: int, overlap: int, multiple: int, *, wrap: int = 0, fixed: bool = False) -> Axis:
    """Tiles along one axis; `tile`, `overlap` and `wrap` are multiples of `multiple`, 0 <= overlap <= tile /
    2.

    An axis no longer than a tile gets one tile as long as the axis rounded up to `multiple`; with `fixed` it
    is padded to the full tile instead.
    """
    padded = round_up(size, multiple)
    if padded <= tile:
        padded = tile if fixed else padded
        return Axis(size, padded, padded, (0,), ())
    length = padded + 2 * wrap  # as if the wrapped pixels lay beyond the ends
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    room = (length - tile) // multiple
    places = [multiple * (i * room // (count - 1)) - wrap for i in range(count)]
    middles = [(a + tile + b) // 2 for a, b in pairwise(places)]
    # Half the overlap, and never so wide that two seams meet: then no pixel is made of three tiles.
    ramp = min([overlap // 2, *(b - a for a, b in pairwise(middles))])
    seams = tuple((middle - ramp // 2, middle - ramp // 2 + ramp) for middle in middles)
    starts = tuple(min(max(place, 0), padded - tile) for place in places)
    return Axis(size, padded, tile, starts, seams, wrap)


def plan(
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
) -> TilePlan:
    """How to cut a picture of `height` x `width` pixels for the network `spec`.

    tile          None: the whole picture at once, as for 'exact', whose strips are no tiles
                  (restort.inference.exact). N: square tiles of N pixels, rounded up to the size
                  multiple of the network. 'auto': the whole picture where its estimated need
                  (`bytes_per_pixel`) fits into `memory_bytes`, otherwise the largest edge of `LADDER` that
                  fits (the smallest if none does).
    overlap       pixels of the input by which neighbours overlap at least, rounded up to the size multiple;
                  None for the measured default, less where the tile is smaller than twice that.
    memory_bytes  what a run may use; None for half of the memory that is free now.
    batch         how many pictures run together.
    fixed         pads pictures smaller than a tile up to the tile, so that there is one shape for all.
    pixel_bytes   what a run needs per pixel, where the backend knows that better than `bytes_per_pixel`.

    Raises UsageError for a tile or an overlap that cannot be.
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
                f"a tile of {tile} is too small for this network; use {smallest} or more, auto, exact or none"
            )
        edge = round_up(tile, multiple)
    limit = edge // 2 // multiple * multiple
    if overlap is None:
        overlap = min(DEFAULT_OVERLAP[spec.architecture], limit)
    elif overlap < 0:
        raise UsageError(f"an overlap of {overlap} is negative; use 0 or more")
    else:
        overlap = round_up(overlap, multiple)
        several = max(round_up(height, multiple), round_up(width, multiple)) > edge
        if overlap > limit and several:
            raise UsageError(
                f"an overlap of {overlap} is more than half of a tile of {edge}; "
                f"use at most {limit} or larger tiles"
            )
        overlap = min(overlap, limit)
    wrap = WRAP[spec.architecture]
    rows = lay_out(height, edge, overlap, multiple, wrap=wrap, fixed=fixed)
    columns = lay_out(width, edge, overlap, multiple, wrap=wrap, fixed=fixed)
    return TilePlan(rows, columns, spec.scale, overlap)


def _auto_edge(height: int, width: int, spec: Spec, memory_bytes: int | None, each: int) -> int:
    """The edge for 'auto': of the whole picture if that fits into the memory, else from the ladder."""
    budget = available_memory() // 2 if memory_bytes is None else memory_bytes
    padded = [round_up(n, spec.size_multiple) for n in (height, width)]
    pixels = budget / each
    if padded[0] * padded[1] <= pixels:
        return max(padded)
    ladder = [round_up(edge, spec.size_multiple) for edge in LADDER]
    fitting = [edge for edge in ladder if min(edge, padded[0]) * min(edge, padded[1]) <= pixels]
    return max(fitting, default=ladder[0])


def run_tiled(network: Network, x: Float32, plan: TilePlan, progress: Progress | None = None) -> Float32:
    """The network over a whole picture: (N, C, H, W) -> (N, C', H * scale, W * scale), not clipped.

    H and W are those of the plan and need not be multiples of anything: padding and cropping happen here.
    `progress(done, total)` is called after each tile.
    """
    result: Float32 | None = None
    for top, band in stream_tiled(network, x, plan, progress):
        if plan.whole:
            return np.ascontiguousarray(band)
        if result is None:
            shape = (*band.shape[:2], plan.rows.size * plan.scale, plan.columns.size * plan.scale)
            result = np.empty(shape, np.float32)
        result[:, :, top : top + band.shape[2]] = band
    assert result is not None
    return result


def stream_tiled(
    network: Network, x: Float32, plan: TilePlan, progress: Progress | None = None
) -> Iterator[tuple[int, Float32]]:
    """Like `run_tiled`, but yields (top, band) from top to bottom: finished rows (N, C', rows, W * scale)."""
    if x.ndim != 4 or x.shape[2:] != (plan.rows.size, plan.columns.size):
        raise ValueError(
            f"an array of shape {x.shape} for a plan of {plan.rows.size} x {plan.columns.size} pixels"
        )
    with closing(_results(network, _tiles(x, plan))) as results:
        yield from _bands(results, x.shape, plan, progress)


def _tiles(x: Float32, plan: TilePlan) -> Iterator[Float32]:
    """All tiles, row by row."""
    for i in range(len(plan.rows.starts)):
        band = _take(x, plan.rows.index(i), axis=2)
        for j in range(len(plan.columns.starts)):
            yield np.ascontiguousarray(_take(band, plan.columns.index(j), axis=3))


def _results(network: Network, tiles: Iterator[Float32]) -> Generator[Float32, None, None]:
    stream = getattr(network, "stream", None)
    if stream is None:
        for tile in tiles:
            yield network(tile)
        return
    results = stream(tiles)
    try:
        yield from results
    finally:
        results.close()  # what is under way is of no use any more


def _bands(
    results: Iterator[Float32], shape: tuple[int, ...], plan: TilePlan, progress: Progress | None
) -> Iterator[tuple[int, Float32]]:
    """(top, finished rows) from the results of all tiles."""
    scale, rows = plan.scale, plan.rows
    tail: Array | None = None  # what the row of tiles above says about the seam
    written = 0
    for i in range(len(rows.starts)):
        strip = _row_of_tiles(results, shape, plan, i, progress)
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
    results: Iterator[Float32], shape: tuple[int, ...], plan: TilePlan, i: int, progress: Progress | None
) -> Float32:
    """Tiles side by side, blended: (N, C', tile height * scale, W * scale)."""
    columns, scale = plan.columns, plan.scale
    strip: Float32 | None = None
    for j, left in enumerate(columns.starts):
        result = next(results)
        expected = (shape[0], plan.rows.tile * scale, columns.tile * scale)
        if result.ndim != 4 or (result.shape[0], *result.shape[2:]) != expected:
            raise RestortError(
                f"the backend returned an array of shape {list(result.shape)} for a tile of "
                f"{[*shape[:2], *plan.tile_shape]}; this is a defect of the backend"
            )
        if progress is not None:
            progress(i * len(columns.starts) + j + 1, plan.count)
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
    """Where tile i has a say in the output: from the begin of the seam before it to the end of that after
    it."""
    begin = axis.seams[i - 1][0] if i else 0
    end = axis.seams[i][1] if i < len(axis.seams) else axis.padded
    return begin * scale, end * scale


def _take(x: Array, index: Array, axis: int) -> Array:
    """x.take(index, axis), as a view where the index is a plain range."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index) and np.array_equal(index, np.arange(first, last + 1)):
        return x[(slice(None),) * axis + (slice(first, last + 1),)]
    return x.take(index, axis=axis)


def _ramp(length: int) -> Float32:
    """(length,): the weight of the later tile, a raised cosine from 0 to 1."""
    phase = (np.arange(length) + 0.5) / max(length, 1)
    return (0.5 - 0.5 * np.cos(np.pi * phase)).astype(np.float32)
