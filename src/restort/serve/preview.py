"""Pictures for browsers, which show neither TIFF nor all 16-bit files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from restort.imaging.decode import read
from restort.imaging.vips import vips

MOST_PIXELS = 4_000_000


def preview(path: Path) -> bytes:
    """Return the picture as an 8-bit PNG in sRGB, reduced to at most MOST_PIXELS. Raises RestortError."""
    picture = read(path)
    pixels = picture.pixels if picture.bits == 8 else (picture.pixels >> 8).astype(np.uint8)
    if picture.alpha is not None:
        alpha = picture.alpha if picture.bits == 8 else (picture.alpha >> 8).astype(np.uint8)
        pixels = np.dstack([pixels, alpha])
    image = vips().Image.new_from_array(np.ascontiguousarray(pixels))
    image = image.copy(interpretation="b-w" if pixels.shape[2] < 3 else "srgb")
    if picture.icc is not None and picture.channels == 3:
        image.set_type(vips().GValue.blob_type, "icc-profile-data", picture.icc)
        image = image.icc_transform("srgb", embedded=True)
    factor = (MOST_PIXELS / (picture.width * picture.height)) ** 0.5
    if factor < 1:
        image = image.resize(factor, kernel="linear")
    data: bytes = image.write_to_buffer(".png", compression=1, keep="none")
    return data
