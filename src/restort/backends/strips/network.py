"""`--tile exact`: the whole-image result of a Restormer for a picture of any size, in bounded memory.

Restormer's attention weighs channels by sums over all pixels (Zamir et al., CVPR 2022, section 3.1); everything else in
it sees the 3 x 3 neighbourhood. So each block goes over the picture twice, strip by strip: the first pass gathers the
sums, which become one C x C matrix per image; the second applies the matrix and the feed-forward network. Only the
residual stream and the skip connections are kept between blocks, as maps in memory or in files
(restort.backends.strips.feature_maps). The expanded channels exist for one cell of a strip at a time
(restort.backends.strips.operations).

The second pass overwrites the map it reads. A strip needs two rows of the strip above from before that, so the pass
keeps a copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restort.backends.strips.feature_maps import FeatureMap, Store, Tensor, check_space
from restort.backends.strips.operations import BlockOperations, Halo, Sums, convolve, crop, shuffle
from restort.backends.strips.workers import Workers
from restort.models.restormer import Restormer
from restort.models.spec import RestormerSpec
from restort.runner import Array, Notify
from restort.tiling.rows import take_rows
from restort.utils.array_types import Rows
from restort.utils.integers import cdiv, round_up

Progress = Callable[[int, int], None]

CELL_BYTES = 4 << 20
"""Size of the widest tensor of a cell on a CPU. Cells of this size stay near the caches, and below the 32 MiB from
which the C library requests every tensor from the system; that makes pictures several times as slow (measured)."""

GPU_CELL_BYTES = 256 << 20
"""Size of the widest tensor of a cell on a GPU, enough to fill it; a few such tensors live at a time."""

LEAST_COLUMNS = 16  # width of a cell, in pixels of its level
STRIP_CELLS = 64
"""Largest size of a strip of a map, in units of a cell's bytes. It lowers the strips of pictures wider than about
20,000 pixels only."""


@dataclass(frozen=True)
class Cut:
    """How the maps of one level of the network are cut.

    height, width   of the maps
    rows            height of a strip; the last one may be lower
    parts           number of cells in a strip, side by side
    """

    height: int
    width: int
    rows: int
    parts: int

    def strips(self) -> list[tuple[int, int]]:
        """(first row, row after the last) of every strip."""
        return list(pairwise([*range(0, self.height, self.rows), self.height]))

    def cells(self) -> list[tuple[int, int]]:
        """(first column, column after the last) of every cell."""
        return list(pairwise(self.width * i // self.parts for i in range(self.parts + 1)))


def stored_bytes(spec: RestormerSpec, n: int, height: int, width: int, itemsize: int = 4) -> int:
    """Return the peak size of all maps in bytes.

    The peak comes before the last decoder level: its input (2 dim channels) is made of the level below (2 dim at half
    the size) and the first skip connection (dim).
    """
    return round(3.5 * spec.dim) * n * height * width * itemsize


def cut_levels(
    spec: RestormerSpec,
    n: int,
    height: int,
    width: int,
    cell_bytes: int = CELL_BYTES,
    threads: int = 1,
    rows: int | None = None,
) -> list[Cut]:
    """Return the cuts of the four levels.

    cell_bytes   size of the widest tensor of a cell, at four bytes a number. Cells are wider than high.
    threads      a strip has a multiple of this many cells, unless they would be narrower than LEAST_COLUMNS
    rows         height of the strips at every level; None chooses it
    """
    cuts = []
    for level in range(4):
        h, w = height >> level, width >> level
        channels = spec.dim << max(level, 1)
        widest = max(2 * spec.hidden(channels), 3 * channels)
        pixels = max(1, cell_bytes // (4 * n * widest))
        if rows is not None:
            high = rows
        else:
            high = max(4, round((pixels / 2) ** 0.5), pixels // w)
            high = min(high, max(2, STRIP_CELLS * cell_bytes // (4 * n * w * channels)))
        high = min(high, h)
        parts = cdiv(w, max(4, pixels // high))
        even = round_up(parts, threads)
        cuts.append(Cut(h, w, high, even if w >= LEAST_COLUMNS * even else parts))
    return cuts


class StripNetwork:
    """A Restormer that runs strip by strip. It has no state between runs, so several threads may use it.

    model   in evaluation mode, on any device, in float32, float64 or float16. The sums of the attention are float64.
    """

    def __init__(self, model: Restormer) -> None:
        self._model: Any = model
        self.spec = model.spec
        weight = self._model.output.weight
        self._dtype, self._device = weight.dtype, weight.device
        with torch.inference_mode():
            self._blocks = {
                name: [BlockOperations(block) for block in getattr(model, name)]
                for name in (
                    *("encoder_level1", "encoder_level2", "encoder_level3", "latent"),
                    *("decoder_level3", "decoder_level2", "decoder_level1", "refinement"),
                )
            }

    def stream(
        self,
        x: Array | Rows,
        *,
        memory_bytes: int,
        folder: Path,
        rows: int | None = None,
        cell_bytes: int | None = None,
        device_bytes: int = 0,
        progress: Progress | None = None,
        notify: Notify | None = None,
    ) -> Iterator[tuple[int, Array]]:
        """Yield (top, rows of the result) from top to bottom: (N, C', rows, W), not clipped.

        x             (N, C, H, W) in [0, 1], H and W multiples of 8.
        memory_bytes  the maps stay in the computer's memory if they fit into this, otherwise in files.
        device_bytes  with a model on a GPU: the maps stay there if they fit into this.
        folder        for the files, which are removed when the run ends in any way.
        rows          height of the strips; None chooses it.
        cell_bytes    size of the widest tensor of a cell; None for CELL_BYTES or GPU_CELL_BYTES.
        progress      called as progress(done, total) after each strip of each pass.
        notify        receives a sentence on the size of the files.

        Raises RestortError, before anything is computed, where the disk has not enough space for the files.
        """
        n, _, height, width = x.shape
        on_cpu = self._device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else 1
        cell_bytes = cell_bytes or (CELL_BYTES if on_cpu else GPU_CELL_BYTES)
        cuts = cut_levels(self.spec, n, height, width, cell_bytes, threads, rows)
        size = stored_bytes(self.spec, n, height, width, self._dtype.itemsize)
        kept = self._device if not on_cpu and size <= device_bytes else torch.device("cpu")
        inside = kept is self._device or size <= memory_bytes
        if not inside:
            check_space(folder, size, notify)
        store = Store(self._dtype, self._device, None if inside else folder, kept)
        run = _Run(self._model, self._blocks, store, Workers(threads), x, cuts, progress)
        # The decorator leaves the mode while the generator waits; a `with` around `yield` would not.
        bands: Iterator[tuple[int, Array]] = torch.inference_mode()(run.bands)()
        return bands


class _Run:
    """One pass through the network."""

    def __init__(
        self,
        model: Any,
        blocks: dict[str, list[BlockOperations]],
        store: Store,
        workers: Workers,
        image: Array | Rows,
        cuts: list[Cut],
        progress: Progress | None,
    ) -> None:
        self._model, self._blocks, self._store, self._workers = model, blocks, store, workers
        self._image, self._cuts, self._progress = image, cuts, progress
        weight = model.output.weight
        self._dtype, self._device = weight.dtype, weight.device
        spec: RestormerSpec = model.spec
        b, strips = spec.num_blocks, [len(cut.strips()) for cut in cuts]
        twice = (2 * b[0] + spec.num_refinement_blocks, 2 * b[1], 2 * b[2], b[3])
        resampled = 2 * sum(strips[1:])  # down to each level and up from it
        self._total = 2 * strips[0] + resampled + 2 * sum(a * c for a, c in zip(twice, strips))
        self._done = 0

    def bands(self) -> Iterator[tuple[int, Array]]:
        model, dim = self._model, self._model.spec.dim
        with self._store, self._workers:
            one = self._embed()
            self._stage("encoder_level1", one, 0)
            two = self._down(model.down1_2, one, 1)
            self._stage("encoder_level2", two, 1)
            three = self._down(model.down2_3, two, 2)
            self._stage("encoder_level3", three, 2)
            x = self._down(model.down3_4, three, 3)
            self._stage("latent", x, 3)
            x = self._up(model.up4_3, x, three, model.reduce_chan_level3, dim * 4, 2)
            self._stage("decoder_level3", x, 2)
            x = self._up(model.up3_2, x, two, model.reduce_chan_level2, dim * 2, 1)
            self._stage("decoder_level2", x, 1)
            x = self._up(model.up2_1, x, one, None, dim * 2, 0)
            self._stage("decoder_level1", x, 0)
            self._stage("refinement", x, 0)
            yield from self._output(x)

    def _tick(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _new(self, level: int, channels: int) -> FeatureMap:
        cut = self._cuts[level]
        return self._store.new((self._image.shape[0], cut.height, cut.width, channels))

    def _image_rows(self, a: int, b: int) -> Tensor:
        """Return rows a to b of the input, (N, b - a, W, C)."""
        rows = np.ascontiguousarray(take_rows(self._image, np.arange(a, b)).transpose(0, 2, 3, 1))
        return torch.from_numpy(rows).to(self._device, self._dtype)

    def _embedded(self, a: int, b: int) -> Tensor:
        """Compute rows a to b of the patch embedding."""
        height = self._cuts[0].height
        x = self._image_rows(max(a - 1, 0), min(b + 1, height))
        return self._cellwise(x, Halo(int(a > 0), int(b < height)), 1, self._model.patch_embed.proj)

    def _cellwise(
        self, x: Tensor, halo: Halo, reach: int, convolution: Any, cut: Cut | None = None
    ) -> Tensor:
        """Apply a convolution to every cell of a strip and cut off the halo."""

        def one(cell: Tensor, edge: Halo) -> Tensor:
            return crop(convolve(cell, convolution), edge)

        return torch.cat(self._workers.map(one, cells(x, halo, reach, cut or self._cuts[0])), dim=2)

    def _embed(self) -> FeatureMap:
        made = self._new(0, self._model.spec.dim)
        for a, b in self._cuts[0].strips():
            made.write(a, self._embedded(a, b))
            self._tick()
        return made

    def _stage(self, name: str, x: FeatureMap, level: int) -> None:
        """Run the blocks of one stage, each in two passes; `x` becomes the output."""
        cut = self._cuts[level]
        for block in self._blocks[name]:
            sums: Sums | None = None
            for a, b in cut.strips():
                rows, halo = around(x, a, b, block.reach_gather)
                for part in self._workers.map(block.gather, cells(rows, halo, block.reach_gather, cut)):
                    if sums is None:
                        sums = part
                    else:
                        sums.add(part)
                self._tick()
            assert sums is not None
            self._finish(block, x, block.attention_matrix(sums), cut)

    def _finish(self, block: BlockOperations, x: FeatureMap, matrix: Tensor, cut: Cut) -> None:
        reach = block.reach_finish
        above = x.read(0, 0)  # the rows above a strip, from before this pass changed them
        for a, b in cut.strips():
            below = min(reach, cut.height - b)
            rows = torch.cat([above, x.read(a, b + below)], dim=1)
            halo = Halo(above.shape[1], below)
            end = rows.shape[1] - below
            above = rows[:, max(end - reach, 0) : end]
            finish = partial(block.finish, matrix)
            x.write(a, torch.cat(self._workers.map(finish, cells(rows, halo, reach, cut)), dim=2))
            self._tick()

    def _down(self, module: Any, x: FeatureMap, level: int) -> FeatureMap:
        """Downsample to half the size and twice the channels."""
        made = self._new(level, x.shape[3] * 2)
        for a, b in self._cuts[level].strips():
            rows, halo = around(x, 2 * a, 2 * b, 1)
            made.write(
                a, shuffle(self._cellwise(rows, halo, 1, module.body[0], self._cuts[level - 1]), up=False)
            )
            self._tick()
        return made

    def _up(
        self, module: Any, x: FeatureMap, skip: FeatureMap, reduce: Any, channels: int, level: int
    ) -> FeatureMap:
        """Upsample to twice the size and half the channels, and join the skip connection. Closes `x` and `skip`."""
        made = self._new(level, channels)
        below = self._cuts[level + 1]
        for a, b in below.strips():
            rows, halo = around(x, a, b, 1)
            enlarged = shuffle(self._cellwise(rows, halo, 1, module.body[0], below), up=True)
            joined = torch.cat([enlarged, skip.read(2 * a, 2 * b)], dim=-1)
            made.write(2 * a, joined if reduce is None else convolve(joined, reduce))
            self._tick()
        x.close()
        skip.close()
        return made

    def _output(self, x: FeatureMap) -> Iterator[tuple[int, Array]]:
        model, height = self._model, self._cuts[0].height
        for a, b in self._cuts[0].strips():
            rows, halo = around(x, a, b, 1)
            if model.spec.dual_pixel:
                rows = rows + convolve(self._embedded(max(a - 1, 0), min(b + 1, height)), model.skip_conv)
            result = self._cellwise(rows, halo, 1, model.output)
            if not model.spec.dual_pixel:
                result = result + self._image_rows(a, b)
            self._tick()
            float32 = result.float() if result.dtype == torch.float16 else result
            yield a, np.ascontiguousarray(float32.permute(0, 3, 1, 2).cpu().numpy())


def around(x: FeatureMap, a: int, b: int, reach: int) -> tuple[Tensor, Halo]:
    """Return rows a to b with up to `reach` rows on either side, within the map."""
    above, below = min(reach, a), min(reach, x.shape[1] - b)
    return x.read(a - above, b + below), Halo(above, below)


def cells(x: Tensor, halo: Halo, reach: int, cut: Cut) -> Iterator[tuple[Tensor, Halo]]:
    """Yield the cells of a strip from left to right, each with up to `reach` columns of its neighbours."""
    for left, right in cut.cells():
        before, after = min(reach, left), min(reach, cut.width - right)
        yield x[:, :, left - before : right + after], Halo(halo.above, halo.below, before, after)
