"""Files larger than the memory: rows in, rows out, through the same tiles as pictures in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from restort.imaging.decode import BY_ROWS, MOST_PNG_EDGE, open_rows
from restort.imaging.encode import check_output
from restort.imaging.picture import Bands, Picture, quantised_rows
from restort.imaging.row_reader import RowPicture, RowReader, without_pixels
from restort.imaging.row_sink import RowSink
from restort.runner import Progress
from restort.utils.memory import available_memory

STREAM_PIXELS = 250_000_000
"""Pictures go by rows from this many pixels of the input or the result; in memory that many take 2 GB and more."""
_MEMORY_SHARE = 4
"""Pictures go by rows, too, where their samples alone, input and result, exceed the free memory divided by this."""


def open_streamed(source: Path, target: Path, scale: int, max_pixels: int | None) -> RowPicture | None:
    """Open a picture that is too large for the memory, to read it by rows; None for others.

    None, too, where formats or alpha need all of it at once (`open_rows`, `RowPicture.fits`).
    """
    if check_output(target) not in BY_ROWS:
        return None
    share = available_memory() // _MEMORY_SHARE

    def large(width: int, height: int, pixel_bytes: int) -> bool:
        result = width * height * scale**2
        return max(scale * width, scale * height) <= MOST_PNG_EDGE and (
            result > STREAM_PIXELS or width * height * pixel_bytes + result * pixel_bytes > share
        )

    picture = open_rows(source, large, max_pixels=max_pixels)
    return picture if picture is not None and picture.fits(scale) else None


def restore_rows(
    picture: RowPicture,
    target: Path,
    scale: int,
    quality: int,
    network: Callable[[Progress], Bands],
    progress: Progress | None,
) -> tuple[Picture, Path, tuple[str, ...]]:
    """Restore a picture row by row into a temporary file beside `target`.

    network   gives the bands of the result, and calls the given progress(done, total)

    Returns the result without its pixels, the temporary file, and notes on what the format does not hold.
    """
    head = picture.head
    result = without_pixels(head, head.height * scale, head.width * scale)
    alpha = _alpha_rows(picture, scale)
    with RowSink(target, result, quality) as sink, ExitStack() as opened:

        def count(done: int, total: int) -> None:
            sink.touch()  # a slow network writes nothing for minutes
            if progress is not None:
                progress(done, total)

        bands = network(count)
        if isinstance(bands, Generator):
            opened.callback(bands.close)
        for top, rows in quantised_rows(bands, head.channels, head.pixels.dtype):
            pixels = rows.astype(head.pixels.dtype)
            sink.write(pixels, None if alpha is None else alpha(top, len(rows)))
        notes = sink.finish()
    return result, sink.temporary, notes


def _alpha_rows(picture: RowPicture, scale: int) -> Callable[[int, int], Any] | None:
    """Return a function (top, count) -> alpha of these rows of the result; None without alpha."""
    if picture.alpha is None:
        return None
    head, (least, most) = picture.head, picture.alpha
    if least == most:
        return lambda top, count: np.full((count, head.width * scale), least, head.pixels.dtype)
    reader = RowReader(picture)
    return lambda top, count: np.ascontiguousarray(reader.take(np.arange(top, top + count))[:, :, -1])
