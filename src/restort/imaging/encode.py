"""A Picture -> a file: the format by the suffix, under a temporary name until it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import RestortError, UsageError
from restort.imaging import colour, formats
from restort.imaging.bmp import write_bmp
from restort.imaging.picture import Picture
from restort.imaging.vips import reason, to_vips, vips
from restort.utils.array_types import Array
from restort.utils.files import write_bytes

QUALITY = 95
_LARGEST = {
    "jpeg": 65_500,
    "webp": 16_383,
    "avif": 65_535,
    "bmp": 1_000_000,
    "png": 10_000_000,
    "tiff": 10_000_000,
}
_SIXTEEN_BIT = ("png", "tiff", "avif")
_KEEP_EXIF, _KEEP_OTHERS = 1, 2 | 4 | 8 | 16  # libvips' flags: EXIF; XMP, IPTC, ICC and the rest


def check_output(path: str | Path) -> str:
    """The format in which a file of this name would be written; UsageError where the suffix is none of the
    known."""
    path = Path(path)
    name = formats.output_format(path)
    if name is None:
        what = f"the suffix {path.suffix}" if path.suffix else "a name without a suffix"
        raise UsageError(
            f"cannot write {path}: {what} is no format known here; use one of {formats.WRITE_LIST}"
        )
    return name


def write(
    path: str | Path, picture: Picture, *, overwrite: bool = False, quality: int = QUALITY, sync: bool = False
) -> tuple[str, ...]:
    """Writes `picture` in the format of the suffix; returns notes on what the format could not hold.

    16 bit goes to PNG and TIFF as it is, to AVIF with 12 bits, to the others rounded to 8. Alpha is laid
    over white for JPEG and BMP, unless it is opaque throughout. Profile, EXIF, XMP, IPTC and resolution go
    along where the format (and libvips) has a place for them: EXIF not in TIFF, none of them in BMP, whose
    colours are therefore made sRGB.

    overwrite   replaces an existing file; without it RestortError.
    quality     1 to 100 of the lossy formats, JPEG in 4:4:4; 100 is lossless in WebP.
    sync        waits until the data is on the disk before the file gets its name.

    Raises RestortError where it cannot be written (nothing is left behind), UsageError for an unknown suffix.
    """
    path = Path(path)
    name = check_output(path)
    if not 1 <= quality <= 100:
        raise UsageError(f"a quality of {quality} is not between 1 and 100")
    if max(picture.height, picture.width) > _LARGEST[name]:
        raise RestortError(
            f"cannot write {path}: {formats.NAMES[name]} holds at most {_LARGEST[name]} pixels a side and "
            f"this picture has {picture.width} x {picture.height}; use .tif or .png"
        )
    notes: list[str] = []
    pixels = _prepared(picture, name, notes)
    data = (
        write_bmp(pixels, picture.resolution)
        if name == "bmp"
        else _encoded(path, pixels, picture, name, quality)
    )
    if name in ("tiff", "bmp") and picture.exif is not None:
        notes.append(f"EXIF is not carried into {formats.NAMES[name]}")
    write_bytes(path, data, overwrite=overwrite, sync=sync)
    return tuple(notes)


def _prepared(picture: Picture, name: str, notes: list[str]) -> Array:
    """(H, W, 1 to 4) in the depth and with the channels that the format holds."""
    pixels, alpha = picture.pixels, picture.alpha
    if (
        name == "bmp"
        and picture.icc is not None
        and picture.channels == 3
        and not colour.is_srgb(picture.icc)
    ):
        pixels = colour.pixels_to_srgb(pixels, picture.icc)
        notes.append("colours were converted to sRGB: BMP cannot hold the profile")
    if name in ("jpeg", "bmp") and alpha is not None:
        if (alpha != picture.peak).any():
            pixels = _over_white(pixels, alpha)
            notes.append(f"alpha was laid over white: {formats.NAMES[name]} cannot hold it")
        alpha = None
    joined = pixels if alpha is None else np.dstack([pixels, alpha])
    if picture.bits == 16 and name not in _SIXTEEN_BIT:
        notes.append(f"16 bit was rounded to 8: {formats.NAMES[name]} holds no more")
        return to_8_bit(joined)
    return joined


def to_8_bit(pixels: Array) -> Array:
    """uint16 -> uint8 on the scale where 65535 is 255, rounded to the nearest."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(pixels: Array, alpha: Array) -> Array:
    """(H, W, C) and (H, W) -> (H, W, C) in front of white, as a viewer shows it."""
    peak = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)
    for row in range(0, len(pixels), 256):  # a few rows at a time, to keep the copies small
        part = slice(row, row + 256)
        share = alpha[part, :, None].astype(np.float64) / peak
        result[part] = np.rint(pixels[part] * share + peak * (1 - share)).astype(pixels.dtype)
    return result


def _encoded(path: Path, pixels: Array, picture: Picture, name: str, quality: int) -> bytes:
    pyvips = vips()
    image = to_vips(pixels)
    if picture.resolution is not None:
        image = image.copy(xres=picture.resolution[0], yres=picture.resolution[1])
    else:
        image = image.copy(xres=72 / 25.4, yres=72 / 25.4)  # what libvips takes as unknown when it reads
    blocks = {
        "icc-profile-data": picture.icc,
        # TIFF has no place for it in libvips, which would take the resolution from it all the same.
        "exif-data": None if name == "tiff" else picture.exif,
        "xmp-data": picture.xmp,
        "iptc-data": picture.iptc,
    }
    for key, block in blocks.items():
        if block is not None:
            image.set_type(pyvips.GValue.blob_type, key, block)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    saver, options = _saver(name, pixels, quality)
    # Without EXIF libvips would make some up; JPEG needs it for the resolution.
    keep_exif = picture.exif is not None or (name == "jpeg" and picture.resolution is not None)
    options["keep"] = _KEEP_OTHERS | (_KEEP_EXIF if keep_exif else 0)
    try:
        return bytes(getattr(image, saver)(**options))
    except pyvips.Error as error:
        raise RestortError(f"cannot write {path}: the encoder failed ({reason(error)})") from None


def _saver(name: str, pixels: Array, quality: int) -> tuple[str, dict[str, Any]]:
    match name:
        case "png":
            return "pngsave_buffer", {"compression": 6, "filter": "all"}
        case "jpeg":
            return "jpegsave_buffer", {"Q": quality, "subsample_mode": "off", "optimize_coding": True}
        case "webp":
            lossy = {"Q": quality, "smart_subsample": True}
            return "webpsave_buffer", {"lossless": True, "exact": True} if quality == 100 else lossy
        case "avif":
            bits = 12 if pixels.dtype == np.uint16 else 8
            options = {"compression": "av1", "Q": quality, "bitdepth": bits, "subsample_mode": "off"}
            return "heifsave_buffer", options
        case _:
            big = pixels.nbytes > 3_500_000_000
            return "tiffsave_buffer", {"compression": "deflate", "predictor": "horizontal", "bigtiff": big}
