"""BMP through Pillow: the binary wheel of libvips has no reader or writer for it."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from restort.utils.array_types import Array


class DamagedBmp(Exception):
    """The file is no BMP that can be decoded; the text says why."""


def bmp_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header says, before anything is decoded."""
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


def read_bmp(data: bytes) -> tuple[Array, tuple[float, float] | None]:
    """((H, W, 1 to 4) uint8, pixels per millimetre or None)."""
    from PIL import BmpImagePlugin, Image

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
        raise DamagedBmp(str(error) or type(error).__name__) from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise DamagedBmp(f"an unusual kind of pixels ({image.mode})")
    resolution = (dpi[0] / 25.4, dpi[1] / 25.4) if dpi and min(dpi) > 0 else None
    return (pixels[:, :, None] if pixels.ndim == 2 else pixels), resolution


def write_bmp(pixels: Array, resolution: tuple[float, float] | None) -> bytes:
    """(H, W, 1 or 3) uint8 -> the file; gray as 8 bit with a gray palette."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {} if resolution is None else {"dpi": (resolution[0] * 25.4, resolution[1] * 25.4)}
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "BMP", **options)
    return buffer.getvalue()
