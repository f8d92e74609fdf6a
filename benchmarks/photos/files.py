"""Pictures as arrays and files: reading, cropping, rounding, JPEG and PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from restort.utils.files import write_bytes

Array = np.ndarray[Any, Any]


def read(path: Path) -> Array:
    """(H, W, 3) uint8; gray is repeated."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_gray(path: Path) -> Array:
    """(H, W) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def eight_bit(values: Array) -> Array:
    """Floats on the scale of 0..255, rounded and clipped to uint8."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def jpeg_bytes(image: Array, quality: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality, subsampling="4:2:0")
    return data.getvalue()


def jpeg(image: Array, quality: int) -> Array:
    """`image` after a JPEG round trip, 4:2:0."""
    with Image.open(io.BytesIO(jpeg_bytes(image, quality))) as decoded:
        return np.asarray(decoded.convert("RGB"))


def middle(image: Array, side: int | None, multiple: int = 1) -> Array:
    """The middle `side` x `side` pixels (all of it for None), then cropped to multiples of `multiple`."""
    if side is not None:
        height, width = image.shape[:2]
        top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
        image = image[top : top + side, left : left + side]
    height, width = (n // multiple * multiple for n in image.shape[:2])
    return image[:height, :width]


def write_once(path: Path, data: Callable[[], bytes]) -> None:
    """Write a file atomically unless it exists."""
    if not path.is_file():
        write_bytes(path, data(), overwrite=True)


def png_bytes(image: Array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return data.getvalue()
