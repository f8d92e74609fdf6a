"""The outcome of one file: what `Model.restore_file` reports, and what waits between computing and writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restort.imaging.picture import Picture


@dataclass(frozen=True)
class Restored:
    """The outcome of one file.

    size, result_size    (width, height) in pixels of the input and the output
    tile                 'whole', 'exact' or the tiles' 'WIDTHxHEIGHT'
    notes                sentences for the user, such as metadata that the format cannot hold
    backend, precision   that computed it
    """

    source: Path
    target: Path
    size: tuple[int, int]
    result_size: tuple[int, int]
    tile: str
    notes: tuple[str, ...] = ()
    backend: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Computed:
    """A result in memory, for Model.store.

    picture   the result; of an animation its last frame
    about     what is known before it is written, with notes on computing
    encoded   the file, of an animation, whose frames are encoded one by one
    written   the file, of a picture larger than the memory, complete under a temporary name; `picture` has no pixels
    """

    picture: Picture
    about: Restored
    encoded: bytes | None = None
    written: Path | None = None

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return 0 if self.written else self.picture.pixels.nbytes + len(self.encoded or b"")
