"""Pictures -> an animated PNG or WebP: each frame is encoded when it comes, and only the part that changes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from restort.errors import RestortError
from restort.imaging import chunks
from restort.imaging.encode import check_output, encode
from restort.imaging.picture import Picture
from restort.utils.array_types import Array

_HOLDING = ("png", "webp")
_FRAME_PARTS = (b"ALPH", b"VP8 ", b"VP8L")
_WEBP_ICC, _WEBP_ALPHA, _WEBP_EXIF, _WEBP_XMP, _WEBP_ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02
_WEBP_OVERWRITE = 0x02  # flag of a frame: it replaces what is below it, alpha included
_MOST_WEBP = 0xFFFF_FFFE  # bytes of a RIFF file


@dataclass(frozen=True)
class _Frame:
    """A frame as a still file of its own.

    box     left, top, width, height in the whole picture, in pixels
    delay   milliseconds
    """

    data: bytes
    box: tuple[int, int, int, int]
    delay: float


def holds_frames(path: Path) -> bool:
    """Return whether the format of the suffix holds all frames of an animation."""
    return check_output(path) in _HOLDING


def encode_animation(
    path: Path, pictures: Iterable[Picture], delays: tuple[float, ...], plays: int, quality: int
) -> tuple[bytes, tuple[str, ...]]:
    """Encode frames in the format of the suffix; return the file and notes on what the format does not hold.

    pictures   of one size and kind; metadata is taken from the first
    delays     milliseconds, one for each picture
    plays      how often the animation runs; 0 for ever
    """
    frames: list[_Frame] = []
    notes: tuple[str, ...] = ()
    size, alpha, before = (0, 0), False, None
    for picture, delay in zip(pictures, delays, strict=True):
        now = _joined(picture)
        if before is None:
            size, alpha = (picture.width, picture.height), picture.alpha is not None
            data, notes = encode(path, picture, quality)
            frames.append(_Frame(data, (0, 0, *size), delay))
        else:
            box = _changed(before, now)
            frames.append(_Frame(encode(path, _part(picture, box), quality)[0], box, delay))
        before = now
    if check_output(path) == "png":
        return _apng(frames, plays), notes
    data = _webp(frames, plays, size, alpha)
    if len(data) > _MOST_WEBP:
        raise RestortError(f"cannot write {path}: WebP holds at most 4 GB; use .png")
    return data, notes


def _joined(picture: Picture) -> Array:
    return picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])


def _changed(before: Array, now: Array) -> tuple[int, int, int, int]:
    """The box (left, top, width, height) of what differs, at even places as WebP needs; a corner where nothing does."""
    differs = (before != now).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, min(2, now.shape[1]), min(2, now.shape[0])
    left, top = int(columns[0]) // 2 * 2, int(rows[0]) // 2 * 2
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _part(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    """The pixels in `box`, without metadata."""
    left, top, width, height = box
    place = slice(top, top + height), slice(left, left + width)
    pixels = np.ascontiguousarray(picture.pixels[place])
    return Picture(pixels, None if picture.alpha is None else np.ascontiguousarray(picture.alpha[place]))


def _apng(frames: list[_Frame], plays: int) -> bytes:
    """Join PNG files (PNG specification, third edition, 11.3.6)."""
    result, sequence = [chunks.PNG_SIGNATURE], 0
    for index, frame in enumerate(frames):
        head, pixels = _png_parts(frame.data)
        if index == 0:
            result.append(head)
            result.append(chunks.packed(b"acTL", struct.pack(">II", len(frames), min(plays, 0x7FFF_FFFF))))
        left, top, width, height = frame.box
        control = struct.pack(
            ">5I2HBB", sequence, width, height, left, top, *_fraction_of_second(frame.delay), 0, 0
        )
        result.append(chunks.packed(b"fcTL", control))
        sequence += 1
        if index == 0:
            result.append(chunks.packed(b"IDAT", pixels))
        else:
            result.append(chunks.packed(b"fdAT", struct.pack(">I", sequence) + pixels))
            sequence += 1
    result.append(chunks.packed(b"IEND", b""))
    return b"".join(result)


def _png_parts(data: bytes) -> tuple[bytes, bytes]:
    """The chunks before the pixels as they are, and the pixels of all IDAT together."""
    place, head, pixels = len(chunks.PNG_SIGNATURE), [], []
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if kind == b"IDAT":
            pixels.append(data[place + 8 : end - 4])
        elif kind != b"IEND":
            head.append(data[place:end])
        place = end
    return b"".join(head), b"".join(pixels)


def _fraction_of_second(milliseconds: float) -> tuple[int, int]:
    """Milliseconds -> numerator and denominator of seconds, 16 bit each."""
    seconds = min(Fraction(milliseconds) / 1000, Fraction(65_535))
    most = 1000 if seconds * 1000 <= 65_535 else int(65_535 / seconds)
    fraction = seconds.limit_denominator(max(most, 1))
    return min(fraction.numerator, 65_535), fraction.denominator


def _webp(frames: list[_Frame], plays: int, size: tuple[int, int], alpha: bool) -> bytes:
    """Join WebP files (RFC 9649, 2.7)."""
    extra = {kind: body for kind, body in _webp_parts(frames[0].data) if kind not in _FRAME_PARTS}
    flags = _WEBP_ANIMATION | (_WEBP_ALPHA if alpha else 0)
    for kind, flag in ((b"ICCP", _WEBP_ICC), (b"EXIF", _WEBP_EXIF), (b"XMP ", _WEBP_XMP)):
        flags |= flag if kind in extra else 0
    header = struct.pack("<I", flags) + _three(size[0] - 1) + _three(size[1] - 1)
    parts = [_webp_chunk(b"VP8X", header)]
    parts += [_webp_chunk(b"ICCP", extra[b"ICCP"])] if b"ICCP" in extra else []
    parts.append(_webp_chunk(b"ANIM", struct.pack("<IH", 0, min(plays, 65_535))))
    shown, time = 0, 0.0
    for frame in frames:
        time += frame.delay
        delay = max(round(time) - shown, 0)  # of the sum, so that roundings do not add up
        shown += delay
        left, top, width, height = frame.box
        place = b"".join(map(_three, (left // 2, top // 2, width - 1, height - 1, min(delay, 0xFFFFFF))))
        pixels = [_webp_chunk(kind, body) for kind, body in _webp_parts(frame.data) if kind in _FRAME_PARTS]
        parts.append(_webp_chunk(b"ANMF", place + bytes([_WEBP_OVERWRITE]) + b"".join(pixels)))
    parts += [_webp_chunk(kind, extra[kind]) for kind in (b"EXIF", b"XMP ") if kind in extra]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", min(len(body), 0xFFFF_FFFF)) + body


def _webp_parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")
