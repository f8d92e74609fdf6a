"""What a file may ask for: told from its header, before anything is decoded."""

from __future__ import annotations

from restort.errors import TooLarge
from restort.utils.memory import available_memory

_FREE_PIXELS = 1 << 24
"""Claims up to this size are never doubted: they cost little."""
_GIF_PIXELS_PER_BYTE = 2_800
"""A code of at least 12 bits stands for at most 4,096 pixels in GIF's LZW."""


def check_pixels(name: str, width: int, height: int, max_pixels: int | None, sample_bytes: int) -> None:
    """Raise TooLarge for a picture beyond the limit of pixels, or beyond the free memory.

    name          of the file
    max_pixels    None for no limit; memory is not looked at either then
    sample_bytes  bytes that one pixel takes as it is stored
    """
    check_count(name, width, height, max_pixels)
    if max_pixels is None:
        return
    # the decoder's buffer and a copy of it, and the network's input: three channels of float32
    check_memory(f"cannot read {name}: {width} x {height} pixels", width * height * (2 * sample_bytes + 12))


def check_count(name: str, width: int, height: int, max_pixels: int | None) -> None:
    """Raise TooLarge for a picture beyond the limit of pixels."""
    if max_pixels is not None and width * height > max_pixels:
        raise TooLarge(
            f"cannot read {name}: it claims {width} x {height} pixels, more than the limit of "
            f"{max_pixels / 1e6:g} million; raise --max-pixels if you trust the file"
        )


def check_memory(what: str, needed: int) -> None:
    """Raise TooLarge where `what` needs more bytes than can be had now."""
    free = available_memory()
    if needed > free:
        raise TooLarge(
            f"{what} need about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; close other "
            "programs, or use a machine with more (--max-pixels none tries it all the same)"
        )


def gif_can_hold(size: int, width: int, height: int) -> bool:
    """Return whether a GIF file of `size` bytes can hold so many pixels. A cut or hostile file may claim many more."""
    return width * height <= _FREE_PIXELS + _GIF_PIXELS_PER_BYTE * size
