"""Pictures larger than the memory: decoded from the file by rows, as a network asks for them.

libvips decodes PNG, JPEG and TIFF from top to bottom. What lies elsewhere (the last rows, which the first tiles of an
ELAN see) is decoded in a pass of its own, and going back begins again at the top. A picture that EXIF turns or mirrors
upside down is decoded by libvips into its own temporary file in TMPDIR first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.imaging.picture import Picture
from restort.imaging.vips import reason, vips
from restort.utils.array_types import Array, Float32

_ROWS = 256  # decoded at a time, to keep libvips' copy small


@dataclass(frozen=True)
class RowPicture:
    """A picture whose pixels stay in its file.

    head     metadata, notes, shape and type; its pixels and alpha are zeros that take no memory
    alpha    the least and the largest alpha; None without
    open     returns the upright libvips image, of which nothing is decoded yet
    failed   makes the error of a damaged file from libvips' words
    """

    head: Picture
    alpha: tuple[int, int] | None
    open: Callable[[], Any]
    failed: Callable[[str], RestortError]

    @property
    def notes(self) -> tuple[str, ...]:
        return self.head.notes

    def fits(self, scale: int) -> bool:
        """Whether a network of this scale needs no more than the rows: alpha must not take part in it.

        Colours under alpha 0 are continued from all over the picture, and alpha that varies is enlarged by the network.
        """
        return self.alpha is None or self.alpha[0] == self.alpha[1] or (self.alpha[0] > 0 and scale == 1)


def without_pixels(head: Picture, height: int, width: int) -> Picture:
    """Return `head` with zeros of another size, which take no memory."""
    pixels = np.broadcast_to(np.zeros(1, head.pixels.dtype), (height, width, head.channels))
    return dataclasses.replace(head, pixels=pixels, alpha=None if head.alpha is None else pixels[:, :, 0])


class RowReader:
    """Reads rows of a picture; it holds those of the last call."""

    def __init__(self, picture: RowPicture) -> None:
        self._picture = picture
        self._region: Any = None
        self._begin = 0  # first row that is held
        self._held: Array | None = None
        self._aside: dict[tuple[int, int], Array] = {}

    def take(self, index: Array) -> Array:
        """Return the rows `index`, (rows,) int, as (rows, W, C), alpha last."""
        needed = np.unique(index)
        cuts = np.flatnonzero(np.diff(needed) > 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(needed, cuts)]
        longest = max(runs, key=lambda run: run[1] - run[0])
        parts = [self._main(*run) if run == longest else self._elsewhere(*run) for run in runs]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        places = np.searchsorted(needed, index)
        return rows if np.array_equal(places, np.arange(len(rows))) else rows[places]

    def _main(self, begin: int, end: int) -> Array:
        """Return rows that the next call continues."""
        held = self._held
        if held is None or begin < self._begin:
            self._region, held = _region(self._picture), None
        reached = 0 if held is None else self._begin + len(held)
        kept = held[begin - self._begin :] if held is not None and begin < reached else None
        start = max(begin, reached) if kept is not None else begin
        if end <= start and kept is not None:
            return kept[: end - begin]
        rows = _fetched(self._picture, self._region, start, end, kept)
        self._begin, self._held = begin, rows
        return rows

    def _elsewhere(self, begin: int, end: int) -> Array:
        """Return a few rows far from the others, and keep them."""
        if (begin, end) not in self._aside:
            self._aside[begin, end] = _fetched(self._picture, _region(self._picture), begin, end, None)
        return self._aside[begin, end]


def _region(picture: RowPicture) -> Any:
    pyvips = vips()
    try:
        return pyvips.Region.new(picture.open())
    except pyvips.Error as error:
        raise picture.failed(reason(error)) from None


def _fetched(picture: RowPicture, region: Any, begin: int, end: int, kept: Array | None) -> Array:
    """Decode rows behind those that are `kept`: all in one array (rows, W, C)."""
    pyvips, head = vips(), picture.head
    bands = head.channels + (head.alpha is not None)
    before = 0 if kept is None else len(kept)
    rows = np.empty((before + end - begin, head.width, bands), head.pixels.dtype)
    if kept is not None:
        rows[:before] = kept
    for top in range(begin, end, _ROWS):
        count = min(_ROWS, end - top)
        try:
            block = region.fetch(0, top, head.width, count)
        except pyvips.Error as error:
            raise picture.failed(reason(error)) from None
        place = before + top - begin
        rows[place : place + count] = np.frombuffer(block, rows.dtype).reshape(count, head.width, bands)
    return rows


def with_alpha_range(picture: RowPicture) -> RowPicture:
    """Fill in the least and the largest alpha, in one pass through the file."""
    if picture.head.alpha is None:
        return picture
    pyvips = vips()
    try:
        image = picture.open()
        found = image.extract_band(image.bands - 1).stats()
        return dataclasses.replace(
            picture, alpha=(int(found.getpoint(0, 0)[0]), int(found.getpoint(1, 0)[0]))
        )
    except pyvips.Error as error:
        raise picture.failed(reason(error)) from None


def turn_image(image: Any, orientation: int) -> Any:
    """Turn and mirror a libvips image as the EXIF orientation 1 to 8 says."""
    turns = {3: "rot180", 5: "rot90", 6: "rot90", 7: "rot270", 8: "rot270"}
    if orientation == 4:
        return image.flipver()
    image = getattr(image, turns[orientation])() if orientation in turns else image
    return image.fliphor() if orientation in (2, 5, 7) else image


class UnitRows:
    """The input of a network, by rows: what `Picture.to_unit` gives of the whole picture."""

    def __init__(self, picture: RowPicture, channels: int) -> None:
        head = picture.head
        self._reader, self._head, self._channels = RowReader(picture), head, channels
        first = without_pixels(dataclasses.replace(head, alpha=None), 1, 1).to_unit(channels)
        self.shape = (*first.shape[:2], head.height, head.width)

    def take_rows(self, index: Array) -> Float32:
        pixels = self._reader.take(index)[:, :, : self._head.channels]
        return Picture(pixels).to_unit(self._channels)
