"""A file -> a Picture: the format by content, not by name; every kind of pixels made gray or RGB, 8 or 16
bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.imaging import colour, formats, metadata
from restort.imaging.bmp import DamagedBmp, bmp_size, read_bmp
from restort.imaging.picture import Picture
from restort.imaging.vips import reason, to_array, vips
from restort.utils.array_types import Array
from restort.utils.files import read_bytes

MAX_PIXELS = 500_000_000
"""Pixels a picture may have unless told otherwise; colour at 16 bit then takes 3 GB."""
_HEAD = 16  # bytes that tell the format

_LOADERS = {
    "png": "pngload_buffer",
    "jpeg": "jpegload_buffer",
    "webp": "webpload_buffer",
    "tiff": "tiffload_buffer",
    "gif": "gifload_buffer",
    "avif": "heifload_buffer",
}


@dataclass
class _Source:
    path: Path
    format: str
    notes: list[str] = field(default_factory=list)

    def damaged(self, why: str) -> RestortError:
        name = formats.NAMES[self.format]
        return RestortError(f"cannot read {self.path}: this {name} file is damaged or cut short ({why})")

    def unsupported(
        self, what: str, remedy: str = "convert it to PNG or TIFF with 8 or 16 bits first"
    ) -> RestortError:
        return RestortError(f"cannot read {self.path}: {what}; {remedy}")


def read(path: str | Path, *, max_pixels: int | None = MAX_PIXELS) -> Picture:
    """The picture in a file, upright.

    Formats: PNG, JPEG, WebP, TIFF, BMP, GIF and AVIF, by content. Palettes become RGB, 1 to 4 bit gray 8
    bit, CMYK and Lab sRGB (CMYK through its own profile if it has one); 16 bit stays 16 bit. RGB and gray
    pixels are not converted: their profile travels with them. The orientation in EXIF is applied. Of several
    pages or frames the first is taken, with a note.

    max_pixels   a file whose header claims more is refused before its pixels are decoded; None for no limit.

    Raises RestortError, one sentence, for anything that is not such a picture, including files cut short.
    """
    path = Path(path)
    data = read_bytes(path, _most_bytes(max_pixels))
    source = _recognized(path, data[:_HEAD])
    try:
        if source.format == "bmp":
            return _bmp(source, data, max_pixels)
        return _through_vips(source, data, max_pixels)
    except MemoryError:
        raise RestortError(f"cannot read {path}: the picture does not fit into the memory") from None


def check_input(path: Path, max_pixels: int | None = MAX_PIXELS) -> None:
    """Raises the RestortError of `read` for what a look at the first bytes can tell: no such file, no permission,
    no picture. Worth asking before long work."""
    _recognized(path, read_bytes(path, _most_bytes(max_pixels), first=_HEAD))


def _most_bytes(max_pixels: int | None) -> int | None:
    return None if max_pixels is None else 16 * max_pixels + (64 << 20)


def _recognized(path: Path, head: bytes) -> _Source:
    """The source whose first `_HEAD` bytes are `head`; RestortError where its format is not read here."""
    if not head:
        raise RestortError(f"cannot read {path}: the file is empty")
    name = formats.sniff(head)
    if name is None:
        known = formats.foreign(head)
        what = f"{known} files are not supported" if known else "it is not a picture in a format known here"
        raise RestortError(f"cannot read {path}: {what}; these are: {formats.READ_LIST}")
    source = _Source(path, name)
    if name == "tiff" and path.suffix.lower() in formats.RAW_SUFFIXES:
        raise source.unsupported("camera raw is not supported", "develop it to a 16-bit TIFF first")
    return source


def _check_size(source: _Source, width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise RestortError(
            f"cannot read {source.path}: it claims {width} x {height} pixels, more than the limit of "
            f"{max_pixels / 1e6:g} million; raise the limit (--max-pixels) if the file is to be trusted"
        )


def _bmp(source: _Source, data: bytes, max_pixels: int | None) -> Picture:
    try:
        _check_size(source, *bmp_size(data), max_pixels)
        pixels, resolution = read_bmp(data)
    except DamagedBmp as error:
        raise source.damaged(str(error)) from None
    colours, alpha = _split(pixels)
    return Picture(colours, alpha, resolution=resolution, format="bmp")


def _through_vips(source: _Source, data: bytes, max_pixels: int | None) -> Picture:
    pyvips = vips()
    try:
        image = getattr(pyvips.Image, _LOADERS[source.format])(data, access="sequential", fail_on="error")
    except pyvips.Error as error:
        if source.format == "avif" and data[8:12] in (b"heic", b"heix"):
            raise source.unsupported(
                "HEIC files are not supported", "convert it to JPEG or PNG first"
            ) from None
        raise source.damaged(reason(error)) from None
    _check_size(source, image.width, image.height, max_pixels)
    fields = set(image.get_fields())
    turned = image.get("orientation") if "orientation" in fields else 1
    blocks = {
        key: _block(image, fields, key) for key in ("exif-data", "xmp-data", "iptc-data", "icc-profile-data")
    }
    _note_losses(source, image, fields, data, blocks)
    image = _supported(source, image)
    try:
        pixels = to_array(image)
    except pyvips.Error as error:
        if source.format == "avif" and "nsupported" in str(error):
            raise source.unsupported(
                "its compression (HEVC) is not supported", "convert it to JPEG or PNG"
            ) from None
        raise source.damaged(reason(error)) from None
    colours, alpha = _split(_upright(pixels, turned))
    exif, xmp = blocks["exif-data"], blocks["xmp-data"]
    icc = blocks["icc-profile-data"] if image.interpretation in ("b-w", "grey16", "srgb", "rgb16") else None
    if any("to sRGB" in note for note in source.notes):
        icc = colour.srgb_profile()
    elif icc is not None and colour.profile_channels(icc) != colours.shape[2]:
        icc = None
        source.notes.append("the colour profile does not fit the pixels and was dropped")
    return Picture(
        colours,
        alpha,
        icc=icc,
        exif=None if exif is None else metadata.upright_exif(exif),
        xmp=None if xmp is None else metadata.upright_xmp(xmp),
        iptc=blocks["iptc-data"],
        resolution=_resolution(image),
        format=source.format,
        notes=tuple(source.notes),
    )


def _block(image: Any, fields: set[str], key: str) -> bytes | None:
    value = image.get(key) if key in fields else None
    return value if isinstance(value, bytes) and value else None


def _note_losses(
    source: _Source, image: Any, fields: set[str], data: bytes, blocks: dict[str, bytes | None]
) -> None:
    pages = image.get("n-pages") if "n-pages" in fields else 1
    if pages > 1:
        what = "frames" if source.format in ("gif", "webp") else "pages"
        source.notes.append(f"only the first of {pages} {what} was read")
    if source.format == "png" and b"acTL" in data[: max(data.find(b"IDAT"), 0)]:
        source.notes.append("only the first frame of the animation was read")
    xmp = blocks["xmp-data"]
    if xmp is not None and metadata.has_gain_map(xmp):
        source.notes.append("the HDR gain map was dropped")
        blocks["xmp-data"] = None  # it describes the gain map and where it lies


def _supported(source: _Source, image: Any) -> Any:
    """`image` as 8 or 16 bit gray or RGB, with or without alpha; still not decoded."""
    space, bands = image.interpretation, image.bands
    if image.format in ("float", "double", "complex", "dpcomplex"):
        raise source.unsupported("its samples are floating-point numbers, whose white is not defined")
    if space in ("lab", "labs") and bands in (3, 4):
        source.notes.append("Lab was converted to sRGB")
        return image.colourspace("rgb16")
    if image.format not in ("uchar", "ushort"):
        raise source.unsupported("its samples are neither 8 nor 16 bit unsigned integers")
    if space == "cmyk" and bands in (4, 5):
        source.notes.append("CMYK was converted to sRGB")
        rgb = colour.cmyk_to_srgb(image.extract_band(0, n=4))
        return rgb if bands == 4 else rgb.bandjoin(image.extract_band(4))
    if (bands in (1, 2) and space in ("b-w", "grey16")) or (
        bands in (3, 4) and space in ("srgb", "rgb16", "rgb")
    ):
        return image
    raise source.unsupported(f"it has {bands} channels of the kind '{space}'")


def _split(pixels: Array) -> tuple[Array, Array | None]:
    """(H, W, 1 to 4) -> the colours and the alpha after them, if any."""
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = np.ascontiguousarray(pixels[:, :, colours]) if pixels.shape[2] > colours else None
    return np.ascontiguousarray(pixels[:, :, :colours]), alpha


def _upright(pixels: Array, orientation: int) -> Array:
    """(H, W, C) turned and mirrored as the EXIF orientation 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def _resolution(image: Any) -> tuple[float, float] | None:
    """Pixels per millimetre; libvips gives 1 where the file says nothing."""
    x, y = float(image.xres), float(image.yres)
    return None if (x, y) == (1.0, 1.0) or not 0 < x < 1e5 or not 0 < y < 1e5 else (x, y)
