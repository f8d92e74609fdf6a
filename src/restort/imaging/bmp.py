"""BMP through Pillow: libvips, as its binary wheel brings it, does not read or write BMP."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from restort.utils.array_types import Array


class DamagedBmp(Exception):
    """The BMP file cannot be decoded; the text says why."""


class UnsupportedBmp(Exception):
    """The BMP file is of a kind that is not read; the text names it."""


def bmp_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from the header, without decoding."""
    try:
        (kind,) = struct.unpack_from("<I", data, 14)
        if kind == 12:
            width, height = struct.unpack_from("<HH", data, 18)
        else:
            width, height = struct.unpack_from("<ii", data, 18)
    except struct.error:
        raise DamagedBmp("the header is cut short") from None
    if width < 1 or height == 0:
        raise DamagedBmp("the header gives no size")
    return width, abs(height)


def _check_length(data: bytes) -> None:
    """Raise DamagedBmp where the pixels cannot be in the file: Pillow would allocate and fill them first."""
    width, height = bmp_size(data)
    try:
        (kind,) = struct.unpack_from("<I", data, 14)
        bits, compression = struct.unpack_from("<H", data, 24 if kind == 12 else 28)[0], 0
        if kind != 12:
            (compression,) = struct.unpack_from("<I", data, 30)
    except struct.error:
        raise DamagedBmp("the header is cut short") from None
    run_length = compression in (1, 2)  # two bytes stand for at most 255 pixels; escapes skip over others
    room = 256 * len(data) + (1 << 20) if run_length else len(data) * 8 // max(bits, 1)
    if width * height > room:
        raise DamagedBmp(f"{len(data)} bytes cannot hold {width} x {height} pixels")


def read_bmp(data: bytes) -> tuple[Array, tuple[float, float] | None]:
    """Decode to (H, W, 1 to 4) and the resolution in pixels per millimetre, None where unknown.

    uint8; uint16 where the file has masks of more than 8 bits.
    An alpha channel that is 0 everywhere is left out: screen grabbers leave the fourth byte unused.
    """
    from PIL import BmpImagePlugin, Image

    _check_length(data)
    try:
        # The class itself: Image.open would try other formats and has a size limit of its own.
        image: Image.Image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
        dpi: Any = image.info.get("dpi")
        image.load()
        if image.mode == "P":
            image = image.convert("RGB")
        elif image.mode == "1":
            image = image.convert("L")
        pixels = np.array(image)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        text = str(error) or type(error).__name__
        if "bitfields" in text and (found := _by_masks(data)) is not None:
            return found
        raise (UnsupportedBmp if "nsupported" in text else DamagedBmp)(text) from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UnsupportedBmp(f"pixels of the kind {image.mode}")
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[:, :, 3].any():
        pixels = np.ascontiguousarray(pixels[:, :, :3])
    resolution = (dpi[0] / 25.4, dpi[1] / 25.4) if dpi and min(dpi) > 0 else None
    return (pixels[:, :, None] if pixels.ndim == 2 else pixels), resolution


def _by_masks(data: bytes) -> tuple[Array, tuple[float, float] | None] | None:
    """Decode a BMP of 16 or 32 bits a pixel with masks of channels that Pillow does not know; None for wrong masks."""
    start, kind, width, height = struct.unpack_from("<IIii", data, 10)
    bits, compression = struct.unpack_from("<HI", data, 28)
    count = 4 if kind >= 56 or compression == 6 else 3
    if bits not in (16, 32) or compression not in (3, 6) or len(data) < 54 + 4 * count:
        return None
    masks = [mask for mask in struct.unpack_from(f"<{count}I", data, 54) if mask]
    depths = [mask.bit_count() for mask in masks]
    shifts = [(mask & -mask).bit_length() - 1 for mask in masks]
    whole = all(
        mask >> shift == (1 << depth) - 1 for mask, shift, depth in zip(masks, shifts, depths, strict=True)
    )
    if len(masks) < 3 or not whole or max(depths) > 16:
        return None
    stride, rows = (width * bits + 31) // 32 * 4, abs(height)
    if start + stride * rows > len(data):
        raise DamagedBmp("the pixels are cut short")
    lines = np.frombuffer(data, np.uint8, stride * rows, start).reshape(rows, stride)[:, : width * bits // 8]
    values = np.ascontiguousarray(lines).view(np.dtype(f"<u{bits // 8}"))[:: 1 if height < 0 else -1]
    dtype = np.dtype(np.uint16 if max(depths) > 8 else np.uint8)
    top, planes = int(np.iinfo(dtype).max), []
    for shift, depth in zip(shifts, depths, strict=True):
        most = (1 << depth) - 1
        plane = (values >> np.array(shift, values.dtype)).astype(np.uint32) & most
        planes.append(((plane * top + most // 2) // most).astype(dtype))
    pixels = np.dstack(planes)
    if pixels.shape[2] == 4 and not pixels[:, :, 3].any():
        pixels = np.ascontiguousarray(pixels[:, :, :3])
    across, down = struct.unpack_from("<ii", data, 38)
    return pixels, (across / 1000, down / 1000) if min(across, down) > 0 else None


def bmp_profile(data: bytes) -> bytes | None:
    """Return the ICC profile embedded in a BMP of version 5; None without one."""
    if len(data) < 138 or struct.unpack_from("<I", data, 14)[0] < 124 or data[70:74] != b"DEBM":
        return None
    start, length = struct.unpack_from("<II", data, 14 + 112)
    profile = data[14 + start : 14 + start + length]
    return profile if length and len(profile) == length else None


def write_bmp(pixels: Array, resolution: tuple[float, float] | None) -> bytes:
    """Encode (H, W, 1 or 3) uint8; gray becomes 8 bit with a gray palette."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {} if resolution is None else {"dpi": (resolution[0] * 25.4, resolution[1] * 25.4)}
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "BMP", **options)
    return buffer.getvalue()
