"""The host's side of depthwise.cuh: tiles of 16 x TALL pixels in shared memory, with one pixel around them."""

from __future__ import annotations

HEADER = "depthwise.cuh"
WIDE = 16


def tile_bytes(parts: int, channels: int, tall: int) -> int:
    """Shared memory of so many channels of each part: the tile's pixels and their taps."""
    return 2 * parts * channels * ((WIDE + 2) * (tall + 2) + 10)


def count(h: int, w: int, tall: int) -> int:
    """Tiles of an image."""
    return -(-h // tall) * -(-w // WIDE)


def blocks(shared: int, limit_kib: int) -> int:
    """How many blocks of so much shared memory a multiprocessor holds, which keeps 1 KB for itself for each."""
    return max(1, (limit_kib + 1) * 1024 // (shared + 1024))
