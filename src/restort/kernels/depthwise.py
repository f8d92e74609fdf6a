"""The host's side of include/depthwise.cuh: tiles of 16 x TALL pixels in shared memory with one pixel around them."""

from __future__ import annotations

from restort.utils.integers import cdiv

HEADER = "depthwise.cuh"
TILE_W = 16


def tile_bytes(parts: int, channels: int, tall: int) -> int:
    """Return the shared memory of a tile's pixels and taps, for so many channels of each part."""
    return 2 * parts * channels * ((TILE_W + 2) * (tall + 2) + 10)


def count_tiles(h: int, w: int, tall: int) -> int:
    """Return the number of tiles of an image."""
    return cdiv(h, tall) * cdiv(w, TILE_W)


def blocks_per_sm(shared: int, limit: int) -> int:
    """Return how many blocks of `shared` bytes an SM holds, where one block may have `limit` bytes.

    An SM has 1 KB more than the largest block and reserves 1 KB for each block.
    """
    return max(1, (limit + 1024) // (shared + 1024))
