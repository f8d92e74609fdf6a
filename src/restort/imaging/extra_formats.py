"""HEIC, JPEG XL and camera raw, by libraries of the extra `formats`: pillow-heif, pillow-jxl-plugin, rawpy.

Each reader returns pixels as they are stored, upright, and what its library gives of the metadata. The libraries'
errors become `Unreadable`, so that nothing here knows the names of files.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from restort.utils.array_types import Array

MODULES = {"heic": "pillow_heif", "jxl": "pillow_jxl", "raw": "rawpy"}
"""The library that reads each format."""
Sized = Callable[[int, int, int], None]
"""Called with width, height and bytes a pixel before anything is decoded; raises where that is too much."""


class Unreadable(Exception):
    """The library cannot read the file; the text says why."""


@dataclass(frozen=True)
class Decoded:
    """Pixels (H, W, 1 to 4) uint8 or uint16, upright, and metadata blocks as files hold them."""

    pixels: Array
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notes: tuple[str, ...] = ()


def installed(name: str) -> bool:
    """Return whether the library of a format is installed."""
    return importlib.util.find_spec(MODULES[name]) is not None


def decode(name: str, data: bytes, sized: Sized) -> Decoded:
    """Decode a file of one of MODULES. Raises Unreadable, and what `sized` raises."""
    return {"heic": _heic, "jxl": _jxl, "raw": _raw}[name](data, sized)


def _heic(data: bytes, sized: Sized) -> Decoded:
    import pillow_heif

    try:
        file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        width, height = file.size
        bits = int(file.info.get("bit_depth") or 8)
    except Exception as error:  # any, on damaged files
        raise Unreadable(_text(error)) from None
    sized(width, height, 6 if bits > 8 else 3)
    try:
        pixels = np.asarray(file)
    except Exception as error:
        raise Unreadable(_text(error)) from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype == np.uint16:  # 10 or 12 bits at the upper end of 16
        most = (1 << bits) - 1
        pixels = (((pixels >> (16 - bits)).astype(np.uint32) * 65535 + most // 2) // most).astype(np.uint16)
    notes = ("only the first of several pictures in the file was read",) if len(file) > 1 else ()
    info = file.info
    return Decoded(pixels, info.get("icc_profile"), _exif(info.get("exif")), info.get("xmp") or None, notes)


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Read (width, height) from the header of a JPEG XL codestream or container (ISO/IEC 18181-1, SizeHeader)."""
    place = 0
    if not data.startswith(b"\xff\x0a"):
        found = [at for box in (b"jxlc", b"jxlp") if (at := data.find(box)) >= 0]
        place = data.find(b"\xff\x0a", min(found)) if found else -1
    if place < 0:
        return None
    bits, used = int.from_bytes(data[place + 2 : place + 18], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    small = take(1)

    def length() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = length()
    ratio = take(3)
    if not ratio:
        return length(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _jxl(data: bytes, sized: Sized) -> Decoded:
    size = jxl_size(data)
    if size is None:
        raise Unreadable("it has no header")
    sized(*size, 8)
    import pillow_jxl

    try:
        jpeg, info, body, icc, boxes = pillow_jxl.Decoder(num_threads=-1)(data)
        if jpeg:
            from PIL import Image

            with Image.open(io.BytesIO(body)) as image:
                pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
        else:
            pixels = _samples(info, body)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_text(error)) from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    exif = next((box.data for box in boxes if box.box_type == b"Exif"), None)
    xmp = next((box.data for box in boxes if box.box_type == b"xml "), None)
    return Decoded(pixels, icc or None, _exif(exif and exif[4:]), xmp)


def _samples(info: Any, body: bytes) -> Array:
    """The decoder's bytes as an array; `info.mode` is a mode of Pillow, such as RGB or RGB;16."""
    kind, _, depth = str(info.mode).partition(";")
    channels = {"L": 1, "I": 1, "LA": 2, "RGB": 3, "RGBA": 4}.get(kind)
    if channels is None or depth not in ("", "16"):
        raise Unreadable(f"its samples are of the kind {info.mode}, neither 8 nor 16 bit integers")
    flat = np.frombuffer(body, np.uint16 if depth else np.uint8)
    return flat.reshape(info.height, info.width, channels)


def _raw(data: bytes, sized: Sized) -> Decoded:
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(data)) as file:
            sized(file.sizes.width, file.sizes.height, 6)
            pixels = file.postprocess(use_camera_wb=True, output_bps=16)
    except rawpy.LibRawError as error:
        raise Unreadable(_text(error)) from None
    return Decoded(pixels, notes=("the raw picture was developed with the camera's white balance, in sRGB",))


def _exif(block: bytes | None) -> bytes | None:
    """An EXIF block with the header that libvips and Pillow write before it."""
    if not block:
        return None
    return block if block.startswith(b"Exif\0\0") else b"Exif\0\0" + block


def _text(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text.removeprefix("b'").removesuffix("'")[:120]
