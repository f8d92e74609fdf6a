"""A Picture -> a file: the format by the suffix; what the format cannot hold is named in a note."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import RestortError, UsageError
from restort.imaging import chunks, colour, formats, metadata, tiff_tags
from restort.imaging.bmp import write_bmp
from restort.imaging.exif_block import replace_exif
from restort.imaging.picture import Picture
from restort.imaging.vips import reason, to_vips, vips
from restort.utils.array_types import Array
from restort.utils.files import write_bytes

QUALITY = 95
_LARGEST = {
    "jpeg": 65_500,
    "webp": 16_383,
    "avif": 16_384,
    "bmp": 1_000_000,
    "png": 10_000_000,
    "tiff": 10_000_000,
}
"""Pixels per side that each format holds at most."""
_SIXTEEN_BIT = ("png", "tiff", "avif")
_KEEP_EXIF, _KEEP_OTHERS = 1, 2 | 4 | 8 | 16  # flags of libvips: EXIF; XMP, IPTC, ICC and the rest
_HOLDS = {
    "jpeg": {"EXIF", "XMP", "IPTC", "comments"},
    "png": {"EXIF", "XMP", "text", "gamma", "comments"},
    "webp": {"EXIF", "XMP"},
    "tiff": {"EXIF", "XMP", "IPTC"},
    "avif": {"EXIF", "XMP"},
    "bmp": set[str](),
}
"""Metadata that each format holds, besides the profile."""


def check_output(path: str | Path) -> str:
    """Return the format for a file of this name; UsageError if RestoRT does not write it."""
    path = Path(path)
    name = formats.output_format(path)
    if name is None:
        what = f"the suffix {path.suffix}" if path.suffix else "a name without a suffix"
        raise UsageError(
            f"cannot write {path}: {what} names no supported format; use one of {formats.WRITE_LIST}"
        )
    return name


def check_fits(path: Path, width: int, height: int) -> None:
    """Raise RestortError where the format of the suffix cannot hold a picture of this size: ask before computing."""
    name = check_output(path)
    if max(height, width) > _LARGEST[name]:
        raise RestortError(
            f"cannot write {path}: {formats.NAMES[name]} holds at most {_LARGEST[name]} pixels a side and "
            f"this picture has {width} x {height}; use .tif or .png"
        )


def write(
    path: str | Path, picture: Picture, *, overwrite: bool = False, quality: int = QUALITY, sync: bool = False
) -> tuple[str, ...]:
    """Write `picture` in the format of the suffix; return notes on what the format does not hold.

    PNG and TIFF hold 16 bit, AVIF 12, the others 8 (values are rounded). JPEG and BMP hold no alpha: the picture is
    laid over white, unless it is opaque. Metadata is written where the format has a place for it. BMP holds no
    profile: its colours become sRGB.

    overwrite   replaces an existing file; without it RestortError.
    quality     1 to 100 for JPEG (always 4:4:4), WebP and AVIF; 100 is lossless in WebP, and in AVIF for 8 bit.
    sync        flushes the data to the disk before the file gets its name.

    Raises RestortError if the file cannot be written (nothing is left behind), UsageError for an unknown suffix.
    """
    data, notes = encode(Path(path), picture, quality)
    write_bytes(Path(path), data, overwrite=overwrite, sync=sync)
    return notes


def encode(path: Path, picture: Picture, quality: int = QUALITY) -> tuple[bytes, tuple[str, ...]]:
    """Encode `picture` as `write` does; return the file and notes on what the format does not hold."""
    name = check_output(path)
    if not isinstance(quality, (int, np.integer)):
        raise UsageError(f"quality must be a whole number, not {quality!r}")
    if not 1 <= quality <= 100:
        raise UsageError(f"a quality of {quality} is out of range; use --quality 1 to 100")
    check_fits(path, picture.width, picture.height)
    notes: list[str] = []
    pixels = prepared(picture, name, notes)
    if name == "bmp":
        data = write_bmp(pixels, picture.resolution)
    else:
        data = with_metadata(_encoded(path, pixels, picture, name, quality, notes), picture, name)
    return data, (*notes, *lost_metadata(picture, name))


def lost_metadata(picture: Picture, name: str) -> list[str]:
    """Note the metadata that the format cannot hold."""
    kinds = {kind for kind, _ in picture.text}
    colour_chunks = [chunk for chunk in picture.text if chunk[0] in chunks.COLOUR_CHUNKS]
    has = {
        "EXIF": picture.exif is not None,
        "XMP": picture.xmp is not None,
        "IPTC": picture.iptc is not None,
        "comments": bool(picture.comments),
        "text": bool(kinds.difference(chunks.COLOUR_CHUNKS)),
        "gamma": not chunks.means_srgb(colour_chunks),
    }
    words = {"gamma": "the colours of gAMA, cHRM or cICP", "text": "PNG text", "comments": "JPEG comments"}
    lost = [words.get(key, key) for key, present in has.items() if present and key not in _HOLDS[name]]
    if not lost:
        return []
    return [
        f"{', '.join(lost)} {'was' if len(lost) == 1 else 'were'} dropped: {formats.NAMES[name]} cannot hold it"
    ]


def with_metadata(data: bytes, picture: Picture, name: str) -> bytes:
    """Insert the metadata that libvips does not write, or not as it was."""
    exif = None
    if picture.exif is not None:
        exif = metadata.sized_exif(picture.exif, picture.width, picture.height)
    if exif is not None:
        dpi = (
            None
            if picture.resolution is None
            else (picture.resolution[0] * 25.4, picture.resolution[1] * 25.4)
        )
        if dpi is not None and (metadata.exif_has_resolution(exif) or np.allclose(dpi, 72, atol=0.1)):
            dpi = None  # 72 is what libvips reads where the EXIF block gives none
        data = replace_exif(data, name, exif, dpi)
    if name == "png":
        comments = [chunks.comment_chunk(text) for text in picture.comments]
        xmp = [] if picture.xmp is None else [chunks.xmp_chunk(picture.xmp)]
        text = [
            chunk for chunk in picture.text if picture.icc is None or chunk[0] not in chunks.COLOUR_CHUNKS
        ]
        return chunks.insert_png_chunks(data, [*text, *comments, *xmp])
    if name == "jpeg":
        return chunks.insert_jpeg_comments(data, picture.comments)
    if name == "tiff":
        iptc = None if picture.iptc is None else tiff_tags.iptc_for_tiff(picture.iptc)
        return tiff_tags.insert_tags(data, picture.exif, iptc, picture.width, picture.height)
    return data


def prepared(picture: Picture, name: str, notes: list[str]) -> Array:
    """Convert to the bit depth and channels that the format holds: (H, W, 1 to 4), alpha last."""
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
    """Convert uint16 to uint8, 65535 to 255, rounded to the nearest."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(pixels: Array, alpha: Array) -> Array:
    """Lay (H, W, C) with alpha (H, W) over white, as a viewer shows it."""
    peak = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)
    for row in range(0, len(pixels), 256):  # a few rows at a time, to keep the copies small
        part = slice(row, row + 256)
        share = alpha[part, :, None].astype(np.float64) / peak
        result[part] = np.rint(pixels[part] * share + peak * (1 - share)).astype(pixels.dtype)
    return result


def _encoded(path: Path, pixels: Array, picture: Picture, name: str, quality: int, notes: list[str]) -> bytes:
    """Encode with libvips; a profile that the encoder refuses is left out, with a note."""
    pyvips = vips()
    image = with_blocks(to_vips(pixels), picture, name)
    saver, options = _saver(name, pixels, quality)
    options["keep"] = kept(picture, name)
    try:
        return bytes(getattr(image, saver)(**options))
    except pyvips.Error as error:
        if picture.icc is not None:
            bare = dataclasses.replace(picture, icc=None)
            data = _encoded(path, pixels, bare, name, quality, notes)
            notes.append(f"the colour profile was dropped: the encoder of {formats.NAMES[name]} refuses it")
            return data
        raise RestortError(
            f"cannot write {path}: the encoder failed ({reason(error)}); use another format, such as .png"
        ) from None


def with_blocks(image: Any, picture: Picture, name: str) -> Any:
    """Give a libvips image the resolution and the metadata that libvips writes."""
    pyvips = vips()
    if picture.resolution is not None:
        image = image.copy(xres=picture.resolution[0], yres=picture.resolution[1])
    else:
        image = image.copy(xres=72 / 25.4, yres=72 / 25.4)  # libvips reads this as unknown
    blocks = {
        "icc-profile-data": picture.icc,
        # libvips writes no EXIF into TIFF, but would take the resolution from it.
        "exif-data": None if name == "tiff" else picture.exif,
        "xmp-data": None if name == "png" else picture.xmp,
        "iptc-data": tiff_tags.iptc_for_jpeg(picture.iptc) if picture.iptc and name == "jpeg" else None,
    }
    for key, block in blocks.items():
        if block is not None:
            image.set_type(pyvips.GValue.blob_type, key, block)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    return image


def kept(picture: Picture, name: str) -> int:
    """The metadata that libvips is to write, as its flags."""
    # Without this libvips would invent an EXIF block; JPEG needs one for the resolution.
    keep_exif = picture.exif is not None or (name == "jpeg" and picture.resolution is not None)
    return _KEEP_OTHERS | (_KEEP_EXIF if keep_exif else 0)


def _saver(name: str, pixels: Array, quality: int) -> tuple[str, dict[str, Any]]:
    """The function of libvips and its options; those of PNG and JPEG by measurement (docs/design/pipeline.md)."""
    match name:
        case "png":
            return "pngsave_buffer", {"compression": 3, "filter": "up"}
        case "jpeg":
            return "jpegsave_buffer", {"Q": quality, "subsample_mode": "off", "optimize_coding": False}
        case "webp":
            lossy = {"Q": quality, "smart_subsample": True}
            return "webpsave_buffer", {"lossless": True, "exact": True} if quality == 100 else lossy
        case "avif":
            bits = 12 if pixels.dtype == np.uint16 else 8
            options = {"compression": "av1", "Q": quality, "bitdepth": bits, "subsample_mode": "off"}
            # Of 16 bit only 12 are held, so that lossless would be none.
            return "heifsave_buffer", options | ({"lossless": True} if quality == 100 and bits == 8 else {})
        case _:
            big = pixels.nbytes > 3_500_000_000
            return "tiffsave_buffer", {"compression": "deflate", "predictor": "horizontal", "bigtiff": big}
