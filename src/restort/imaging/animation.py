"""The frames of animated GIF, PNG and WebP files, decoded one at a time by Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from restort.imaging import chunks
from restort.utils.array_types import Array

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

ANIMATED = ("gif", "png", "webp")
"""Formats whose frames are all read."""
MAX_FRAMES = 4_000
"""libwebp's time to list frames grows with the square of their number: 0.2 s here, 23 s for 60,000."""


MOST_PIXELS = 1 << 26
"""Of one frame; of more than 89 million Pillow warns on the terminal."""


class Unreadable(Exception):
    """The frames cannot all be read; the message says why."""


@dataclass(frozen=True)
class Animation:
    """The frames of a file.

    data     the file
    start    index of the first frame: 1 where a PNG has a still picture before its animation
    delays   milliseconds that each frame is shown
    plays    how often the animation runs; 0 for ever
    gray     frames have 1 channel, otherwise 3
    alpha    frames have alpha: at least one pixel of one frame is transparent
    turn     turns (H, W, C) upright
    """

    data: bytes
    start: int
    delays: tuple[float, ...]
    plays: int
    gray: bool
    alpha: bool
    turn: Callable[[Array], Array]

    def __len__(self) -> int:
        return len(self.delays)

    def frames(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield (pixels (H, W, C), alpha (H, W) or None) of every frame, uint8, composed and upright."""
        with _opened(self.data) as file:
            for index in range(self.start, self.start + len(self)):
                values = self.turn(_frame(file, index))
                pixels = values[:, :, : 1 if self.gray else 3]
                alpha = np.ascontiguousarray(values[:, :, 3]) if self.alpha else None
                yield np.ascontiguousarray(pixels), alpha


def read_animation(data: bytes, format: str, *, gray: bool, turn: Callable[[Array], Array]) -> Animation:
    """Decode every frame once, so that a damaged one is found before any is restored. Raises Unreadable."""
    data = chunks.without_png_text(data) if format == "png" else data
    try:
        with _opened(data) as file:
            total, start = getattr(file, "n_frames", 1), int(getattr(file, "default_image", False))
            delays, alpha = [], False
            for index in range(start, total):
                alpha |= bool((_frame(file, index)[:, :, 3] != 255).any())
                delays.append(max(float(file.info.get("duration") or 0), 0.0))
            plays = _plays(file, format)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"another one is damaged: {text[:120]}") from None
    if not delays:
        raise Unreadable("there are no others")
    return Animation(data, start, tuple(delays), plays, gray, alpha, turn)


def _opened(data: bytes) -> ImageFile:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=[name.upper() for name in ANIMATED])


def _frame(file: ImageFile, index: int) -> Array:
    size = file.size
    file.seek(index)
    if file.size != size:  # Pillow enlarges a GIF for a frame beyond its edges
        raise ValueError(f"it has {file.size[0]} x {file.size[1]} pixels instead of {size[0]} x {size[1]}")
    pixels: Array = np.asarray(file.convert("RGBA"))
    return pixels


def _plays(file: ImageFile, format: str) -> int:
    """How often the animation runs; 0 for ever. GIF counts repetitions, and runs once without a count."""
    count: Any = file.info.get("loop")
    if format != "gif":
        return int(count or 0)
    return 1 if count is None else int(count) + (count > 0)
