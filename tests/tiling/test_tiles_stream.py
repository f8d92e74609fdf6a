"""Tiles of a backend that takes them as a stream: the same picture, read ahead, and safe when memory runs out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from restort.errors import OutOfMemory
from restort.tiling.halving import Halving
from restort.tiling.tiles import run_tiled, stream_tiled, tile_layout
from tests.fakes.fake_backend import ELAN

SPEC = ELAN[2]


class Streaming:
    """Enlarges by repetition; two arrays are in flight. `room` is the largest number of pixels that fit."""

    def __init__(self, room: int = 1 << 30, fails_at: int = 1 << 30) -> None:
        self.room, self.fails_at = room, fails_at
        self.taken = self.given = self.single = 0
        self.closed = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.single += 1
        if x.shape[2] * x.shape[3] > self.room:
            raise OutOfMemory("too large")
        return x.repeat(2, 2).repeat(2, 3)

    def stream(self, arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        flying: list[np.ndarray] = []
        try:
            for x in arrays:
                self.taken += 1
                if self.taken == self.fails_at:
                    raise OutOfMemory("now")
                flying.append(x)
                if len(flying) == 2:
                    yield self._give(flying)
            while flying:
                yield self._give(flying)
        finally:
            self.closed = True

    def _give(self, flying: list[np.ndarray]) -> np.ndarray:
        self.given += 1
        x = flying.pop(0)
        if x.shape[2] * x.shape[3] > self.room:
            raise OutOfMemory("too large")
        return x.repeat(2, 2).repeat(2, 3)


def picture() -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, 200, 300), np.float32)


@pytest.mark.parametrize("fails_at", [1, 2, 5, 1 << 30])
def test_a_stream_gives_the_same_picture(fails_at: int) -> None:
    x, network = picture(), Streaming(fails_at=fails_at)
    cut = tile_layout(200, 300, SPEC, 64, 16)
    done: list[int] = []
    y = run_tiled(Halving(network, SPEC), x, cut, lambda now, total: done.append(now))
    np.testing.assert_allclose(y, x.repeat(2, 2).repeat(2, 3), atol=1e-6)
    assert network.closed and done == list(range(1, cut.count + 1))
    assert network.single == (0 if fails_at > cut.count else cut.count - max(fails_at - 2, 0))


def test_tiles_that_are_too_large_are_halved() -> None:
    x, network = picture(), Streaming(room=64 * 64)
    y = run_tiled(Halving(network, SPEC), x, tile_layout(200, 300, SPEC, 128, 32))
    np.testing.assert_allclose(y, x.repeat(2, 2).repeat(2, 3), atol=1e-6)


def test_a_picture_left_half_way_closes_the_stream() -> None:
    network = Streaming()
    bands = stream_tiled(network, picture(), tile_layout(200, 300, SPEC, 64, 16))
    next(bands)
    bands.close()  # type: ignore[attr-defined]
    assert network.closed
