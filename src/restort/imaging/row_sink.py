"""A picture larger than the memory, encoded by rows into a temporary file beside its target: TIFF, PNG or JPEG.

libvips pulls: a thread of its own encodes and reads from a pipe that `write` fills. Rows go through the pipe as a PNG
without compression, since libvips reads no simpler format from a pipe.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.imaging import chunks, tiff_tags
from restort.imaging.encode import (
    QUALITY,
    check_fits,
    check_output,
    encode,
    kept,
    lost_metadata,
    prepared,
    with_blocks,
    with_metadata,
)
from restort.imaging.picture import Picture
from restort.imaging.vips import reason, vips
from restort.utils.array_types import Array
from restort.utils.files import create_temporary, writing

PIPE_BYTES = 64 << 20
"""Encoded later than this, rows wait."""
_CHUNK_BYTES = 4 << 20
"""Size of the pieces that rows are packed in."""
TILE = 256  # edge of the tiles of a TIFF
_BIG_TIFF = 2_500_000_000
"""Bytes of pixels from which a TIFF has 8-byte offsets: with its pyramid, a third more, it may pass 4 GB."""
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


class RowSink:
    """Encodes rows as they come.

    with RowSink(path, head) as sink:
        sink.write(pixels, alpha)   # from top to bottom
        notes = sink.finish()       # `sink.temporary` is complete, for restort.utils.files.publish

    head   metadata, size and type of the whole picture (restort.imaging.row_reader.without_pixels)

    A TIFF is tiled and has a pyramid. Otherwise the file and the notes are those of restort.imaging.encode.write.
    Leaving it without `finish` removes the file. Raises RestortError where the file cannot be written.
    """

    def __init__(self, path: Path, head: Picture, quality: int = QUALITY) -> None:
        self._path, self._name, self._quality = path, check_output(path), quality
        check_fits(path, head.width, head.height)
        small = _first_pixels(head)
        profile_refused = [note for note in encode(path, small, quality)[1] if "encoder" in note]
        self._notes: list[str] = []
        self._late = profile_refused
        self._head = dataclasses.replace(head, icc=None) if profile_refused else head
        self._written = 0  # rows
        self._pipe = _Pipe()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._packer: _PngPacker | None = None
        self.temporary = create_temporary(path)
        self._finished = False

    def __enter__(self) -> RowSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._pipe.stop()
            if self._thread is not None:
                self._thread.join()
            self.temporary.unlink(missing_ok=True)

    def touch(self) -> None:
        """Show other runs, which remove temporary files that have not changed for long, that this one is in use."""
        with writing(self._path):
            os.utime(self.temporary)

    def write(self, pixels: Array, alpha: Array | None = None) -> None:
        """Append rows (rows, W, C) and their alpha (rows, W)."""
        part, notes = dataclasses.replace(self._head, pixels=pixels, alpha=alpha), list[str]()
        rows = prepared(part, self._name, notes)
        self._notes += [note for note in notes if note not in self._notes]
        if self._packer is None:
            self._packer = _PngPacker(self._head.width, self._head.height, rows)
            self._pipe.push(self._packer.head)
            self._thread = threading.Thread(target=self._encode, args=(rows.dtype,), name="restort-encode")
            self._thread.start()
        self._written += len(rows)
        for data in self._packer.pack(rows):
            if not self._pipe.push(data):
                break
        if self._error is not None:
            raise self._failure(self._error)
        self.touch()

    def finish(self) -> tuple[str, ...]:
        """Complete the file; return notes on what the format does not hold."""
        if self._packer is None or self._thread is None or self._written != self._head.height:
            raise ValueError(f"{self._written} rows for a picture of {self._head.height}")
        self._pipe.push(self._packer.end())
        self._pipe.close()
        self._thread.join()
        if self._error is not None:
            raise self._failure(self._error)
        if self._name == "tiff":
            head = self._head
            iptc = None if head.iptc is None else tiff_tags.iptc_for_tiff(head.iptc)
            with writing(self._path):
                tiff_tags.insert_tags_into(self.temporary, head.exif, iptc, head.width, head.height)
        self._finished = True
        return (*self._notes, *self._late, *lost_metadata(self._head, self._name))

    def _encode(self, dtype: np.dtype[Any]) -> None:
        """Run the encoder to its end; in a thread of its own."""
        pyvips = vips()
        try:
            source = pyvips.SourceCustom()
            source.on_read(self._pipe.read)
            image = pyvips.Image.pngload_source(source, access="sequential", fail_on="error")
            image = with_blocks(image, self._head, self._name)
            keep = kept(self._head, self._name)
            if self._name == "tiff":
                size = image.width * image.height * image.bands * dtype.itemsize
                image.tiffsave(
                    str(self.temporary),
                    keep=keep,
                    compression="deflate",
                    predictor="horizontal",
                    bigtiff=size > _BIG_TIFF,
                    tile=True,
                    tile_width=TILE,
                    tile_height=TILE,
                    pyramid=True,
                )
            else:
                self._save_stream(image, keep)
        except Exception as error:  # reported by the thread that writes
            self._error = error
        finally:
            self._pipe.stop()

    def _save_stream(self, image: Any, keep: int) -> None:
        """Encode PNG or JPEG; its head gets the metadata that libvips does not write."""
        failures: list[Exception] = []
        with self.temporary.open("wb", buffering=1 << 20) as file:
            head = _FileHead(self._name, lambda data: with_metadata(data, self._head, self._name))

            def write(data: bytes) -> int:
                try:
                    file.write(head.passed(bytes(data)))
                except Exception as error:  # it cannot pass through libvips
                    failures.append(error)
                    return -1
                return len(data)

            target = vips().TargetCustom()
            target.on_write(write)
            try:
                if self._name == "png":
                    image.pngsave_target(target, keep=keep, compression=3, filter="up")
                else:
                    image.jpegsave_target(
                        target, keep=keep, Q=self._quality, subsample_mode="off", optimize_coding=False
                    )
            except vips().Error:
                if not failures:
                    raise
            if failures:
                raise failures[0]

    def _failure(self, error: Exception) -> RestortError:
        why = getattr(error, "strerror", None) or reason(error)
        try:
            full = shutil.disk_usage(self.temporary.parent).free < 16 << 20
        except OSError:
            full = False
        if full:
            return RestortError(
                f"cannot write {self._path}: the disk is full; free some space or use another folder"
            )
        return RestortError(
            f"cannot write {self._path}: the encoder failed ({why}); use another format, such as .tif"
        )


def _first_pixels(head: Picture) -> Picture:
    """A corner of the picture, which is encoded to learn whether the format takes the profile."""
    alpha = None if head.alpha is None else np.ascontiguousarray(head.alpha[:8, :8])
    return dataclasses.replace(head, pixels=np.ascontiguousarray(head.pixels[:8, :8]), alpha=alpha)


class _PngPacker:
    """Packs rows into a PNG without compression; `head` comes first."""

    def __init__(self, width: int, height: int, rows: Array) -> None:
        """`rows` tells the type and the channels."""
        kind = _COLOUR_TYPE[rows.shape[2]]
        size = struct.pack(">IIBBBBB", width, height, 8 * rows.dtype.itemsize, kind, 0, 0, 0)
        self.head = chunks.PNG_SIGNATURE + chunks.packed(b"IHDR", size)
        self._stored = zlib.compressobj(0)

    def pack(self, rows: Array) -> Iterator[bytes]:
        """Pack rows (rows, W, C), a few at a time, to keep the copies small."""
        step = max(1, _CHUNK_BYTES // rows[0].nbytes)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            flat = np.ascontiguousarray(part.astype(part.dtype.newbyteorder(">"))).reshape(len(part), -1)
            lines = np.zeros((len(part), 1 + flat.shape[1] * part.dtype.itemsize), np.uint8)  # filter: none
            lines[:, 1:] = flat.view(np.uint8)
            data = self._stored.compress(lines.data)
            if data:
                yield chunks.packed(b"IDAT", data)

    def end(self) -> bytes:
        return chunks.packed(b"IDAT", self._stored.flush()) + chunks.packed(b"IEND", b"")


class _Pipe:
    """Bytes from one thread to another, at most about PIPE_BYTES at a time."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._held = self._place = 0  # bytes that wait; those of the first part that are read
        self._closed = self._stopped = False
        self._changed = threading.Condition()

    def push(self, data: bytes) -> bool:
        """Add data, when there is room; False where nobody reads any more."""
        with self._changed:
            while self._held > PIPE_BYTES and not self._stopped:
                self._changed.wait()
            if not self._stopped:
                self._parts.append(data)
                self._held += len(data)
                self._changed.notify_all()
            return not self._stopped

    def close(self) -> None:
        """End the data: a reader gets what is there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End both sides at once."""
        with self._changed:
            self._stopped = True
            self._parts.clear()
            self._changed.notify_all()

    def read(self, most: int) -> bytes:
        """Return at most so many bytes, when there are any; none at the end."""
        with self._changed:
            while not self._parts and not self._closed and not self._stopped:
                self._changed.wait()
            if not self._parts:
                return b""
            first = self._parts[0]
            data = first[self._place : self._place + most]
            self._place += len(data)
            if self._place == len(first):
                self._parts.popleft()
                self._held -= len(first)
                self._place = 0
                self._changed.notify_all()
            return data


class _FileHead:
    """Changes what stands before the pixels of a PNG or JPEG that passes through in pieces."""

    def __init__(self, name: str, change: Any) -> None:
        self._name, self._change, self._data = name, change, b""
        self._done = False

    def passed(self, data: bytes) -> bytes:
        """Return what can be written now."""
        if self._done:
            return data
        self._data += data
        if not _complete(self._name, self._data):
            return b""
        self._done = True
        changed: bytes = self._change(self._data)
        self._data = b""
        return changed


def _complete(name: str, data: bytes) -> bool:
    """Whether the file's beginning reaches the pixels."""
    place = 8 if name == "png" else 2
    while place + 8 <= len(data):
        if name == "png":
            if data[place + 4 : place + 8] == b"IDAT":
                return True
            place += 12 + int.from_bytes(data[place : place + 4], "big")
        else:
            if data[place + 1] == 0xDA:
                return True
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False
