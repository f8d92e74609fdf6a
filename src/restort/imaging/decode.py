"""A file -> a Picture: the format by content, not by name; all pixels become gray or RGB, 8 or 16 bit.

A file that cannot be read fails in one of three ways, each with its remedy: unsupported (convert it), damaged (copy it
again), too large (raise the limit).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.imaging import chunks, colour, extra_formats, formats, limits, metadata, tiff_tags
from restort.imaging.animation import ANIMATED, MAX_FRAMES, MOST_PIXELS, Animation, Unreadable, read_animation
from restort.imaging.bmp import DamagedBmp, UnsupportedBmp, bmp_profile, bmp_size, read_bmp
from restort.imaging.picture import Picture
from restort.imaging.row_reader import RowPicture, turn_image, with_alpha_range
from restort.imaging.vips import DTYPES, reason, to_array, vips
from restort.utils.array_types import Array
from restort.utils.extras import install_command
from restort.utils.files import Content, read_bytes

MAX_PIXELS = 500_000_000
"""Default limit of pixels; a colour picture of this size with 16 bit takes 3 GB."""

BY_ROWS = ("png", "jpeg", "tiff")
"""Formats that are read and written by rows."""
MOST_PNG_EDGE = 1_000_000
"""libpng, through which rows reach the encoders, takes no larger edge."""
_LOADERS = {
    "png": "pngload_buffer",
    "jpeg": "jpegload_buffer",
    "webp": "webpload_buffer",
    "tiff": "tiffload_buffer",
    "gif": "gifload_buffer",
    "avif": "heifload_buffer",
}
_UNSUPPORTED = (  # parts of libvips' messages about sound files of kinds that it does not read
    "nsupported",
    "not supported",
    "not configured",
    "not been built in",
    "not a whole number of bytes",
    "samples out of range",
    "required field 262 missing",
)
_PROFILED = ("b-w", "grey16", "srgb", "rgb16")
_OLD_JPEG = 6  # TIFF compression


@dataclass
class _Source:
    """A file that is being read: its path, its format, and notes on what is left out."""

    path: Path
    format: str
    notes: list[str] = field(default_factory=list)

    def failed(self, why: str) -> RestortError:
        """Return the error for a message of a decoder: an unsupported kind of file, or a damaged one."""
        if "HEVC" in why:
            return self.unsupported("it is HEIC inside, under the brand of AVIF", formats.remedy("HEIC"))
        if any(words in why for words in _UNSUPPORTED):
            return self.unsupported(
                f"this kind of {formats.NAMES[self.format]} file is not supported ({why})"
            )
        name = formats.NAMES[self.format]
        return RestortError(
            f"cannot read {self.path}: this {name} file is damaged or cut short ({why}); copy or download it again"
        )

    def unsupported(
        self, what: str, remedy: str = "convert it to PNG or TIFF with 8 or 16 bits first"
    ) -> RestortError:
        return RestortError(f"cannot read {self.path}: {what}; {remedy}")


def read(path: str | Path, *, max_pixels: int | None = MAX_PIXELS, all_frames: bool = False) -> Picture:
    """Read the picture in a file, upright.

    Formats: PNG, JPEG, WebP, TIFF, BMP, GIF and AVIF, by content; HEIC, JPEG XL and camera raw with the extra
    `formats` (raw is developed to 16 bit with the camera's white balance). Palettes become RGB, 1 to 4 bit gray 8 bit,
    CMYK and Lab sRGB (CMYK through its own profile if it has one); 10 bit and more become 16, which stay 16. RGB and
    gray pixels stay as they are and keep their profile. The orientation in EXIF is applied. Of several pages or frames
    the first is read, with a note.

    max_pixels   refuse a file whose header claims more, before decoding; None for no limit.
    all_frames   give GIF, PNG and WebP that move an `animation` instead of the note.

    Raises RestortError if the file is unsupported, damaged or too large.
    """
    path = Path(path)
    data = read_bytes(path, _most_bytes(max_pixels))
    source = _recognized(path, data[: formats.HEAD])
    try:
        if source.format == "bmp":
            return _bmp(source, data, max_pixels)
        if source.format in formats.EXTRA:
            return _extra(source, data, max_pixels)
        return _through_vips(source, data, max_pixels, all_frames)
    except MemoryError:
        raise RestortError(
            f"cannot read {path}: the picture does not fit into memory; close other programs"
        ) from None


def check_input(path: Path, max_pixels: int | None = MAX_PIXELS) -> None:
    """Raise the RestortError of `read` that the first bytes call for: ask before long work."""
    _recognized(path, read_bytes(path, _most_bytes(max_pixels), first=formats.HEAD))


def _most_bytes(max_pixels: int | None) -> int | None:
    """Size of the largest file within the limit of pixels: 16 bytes per pixel, and metadata."""
    return None if max_pixels is None else 16 * max_pixels + (64 << 20)


def _recognized(path: Path, head: bytes) -> _Source:
    """Recognise the format by the first bytes; RestortError if it is not read."""
    if not head:
        raise RestortError(f"cannot read {path}: the file is empty; copy or download it again")
    name = formats.sniff(head)
    if name is None:
        known = formats.foreign(head)
        if known is None:
            raise RestortError(
                f"cannot read {path}: it is not a picture in a known format; supported are {formats.READ_LIST}"
            )
        raise RestortError(f"cannot read {path}: {known} files are not supported; {formats.remedy(known)}")
    if name == "tiff" and path.suffix.lower() in formats.RAW_SUFFIXES:
        name = "raw"
    source = _Source(path, name)
    if name in formats.EXTRA and not extra_formats.installed(name):
        what = formats.EXTRA_NAMES[name]
        raise RestortError(
            f"cannot read {path}: {what} needs the extra 'formats'; install it with: {install_command('formats')}, or "
            f"{formats.remedy(what)}"
        )
    return source


def _extra(source: _Source, data: bytes, max_pixels: int | None) -> Picture:
    """Decode HEIC, JPEG XL or camera raw."""

    def sized(width: int, height: int, pixel_bytes: int) -> None:
        limits.check_pixels(str(source.path), width, height, max_pixels, pixel_bytes)

    try:
        found = extra_formats.decode(source.format, data, sized)
    except extra_formats.Unreadable as error:
        name = formats.EXTRA_NAMES[source.format]
        raise RestortError(
            f"cannot read {source.path}: its {name} decoder fails ({error}); copy or download it again, or "
            f"{formats.remedy(name)}"
        ) from None
    source.notes += found.notes
    exif = found.exif
    if source.format == "raw" and (directory := tiff_tags.read_directory(data)) is not None:
        exif = tiff_tags.exif_of_tiff(*directory)
    colours, alpha = _split(np.ascontiguousarray(found.pixels))
    return Picture(
        colours,
        alpha,
        icc=_profile(source, found.icc, colours.shape[2]),
        exif=None if exif is None else metadata.upright_exif(exif),
        xmp=None if found.xmp is None else metadata.upright_xmp(found.xmp),
        format=source.format,
        notes=tuple(source.notes),
    )


def _bmp(source: _Source, data: bytes, max_pixels: int | None) -> Picture:
    try:
        limits.check_pixels(str(source.path), *bmp_size(data), max_pixels, 4)
        pixels, resolution = read_bmp(data)
    except DamagedBmp as error:
        raise source.failed(str(error)) from None
    except UnsupportedBmp as error:
        raise source.unsupported(f"this kind of BMP file is not supported ({error})") from None
    colours, alpha = _split(pixels)
    icc = _profile(source, bmp_profile(data), colours.shape[2])
    return Picture(colours, alpha, icc=icc, resolution=resolution, format="bmp", notes=tuple(source.notes))


def _through_vips(source: _Source, data: bytes, max_pixels: int | None, all_frames: bool) -> Picture:
    pyvips = vips()
    image, frames, lab = _open_lazily(source, data, max_pixels)
    found = _metadata(source, data, image, frames)
    try:
        image = _supported(source, _lab(image) if lab else image)
        pixels = to_array(image)
    except pyvips.Error as error:
        raise source.failed(reason(error)) from None
    if source.format == "avif" and _is_gray_avif(data):
        pixels = np.delete(pixels, (1, 2), axis=2)
    colours, alpha = _split(_upright(pixels, found.orientation))
    animation, note = None, found.note
    if note is not None:
        if all_frames and source.format in ANIMATED:
            animation, note = _animation(
                source, data, colours, found.pages, found.orientation, max_pixels, note
            )
        source.notes += [] if note is None else [note]
    return dataclasses.replace(_described(source, image, found, colours, alpha), animation=animation)


@dataclass
class _Metadata:
    """What a file says beside its pixels.

    blocks        EXIF, XMP, IPTC and ICC by libvips' names of them
    note          that only the first of `pages` pages or frames is read; None where there is only one
    """

    blocks: dict[str, bytes | None]
    text: tuple[chunks.Chunk, ...]
    comments: tuple[bytes, ...]
    orientation: int
    pages: int
    note: str | None


def _metadata(source: _Source, data: Content, image: Any, frames: int) -> _Metadata:
    """Read the metadata of a file that libvips has opened."""
    fields = set(image.get_fields())
    blocks = {
        key: _block(image, fields, key) for key in ("exif-data", "xmp-data", "iptc-data", "icc-profile-data")
    }
    text, comments = _beside_vips(source, data, blocks)
    orientation = image.get("orientation") if "orientation" in fields else 1
    if source.format == "png" and blocks["exif-data"] is not None:
        orientation = metadata.exif_orientation(blocks["exif-data"])
    pages = max(frames, image.get("n-pages") if "n-pages" in fields else 1)
    if source.format == "tiff" and pages > 1:
        pages -= tiff_tags.reduced_pages(data)
    note = _only_the_first(source, pages, data)
    _note_losses(source, data, blocks)
    return _Metadata(blocks, text, comments, orientation, pages, note)


def _described(source: _Source, image: Any, found: _Metadata, colours: Array, alpha: Array | None) -> Picture:
    """Make the Picture of upright pixels, with the metadata of its file."""
    exif, xmp = found.blocks["exif-data"], found.blocks["xmp-data"]
    if any("to sRGB" in note for note in source.notes):
        icc: bytes | None = colour.srgb_profile()
    else:
        profile = found.blocks["icc-profile-data"] if image.interpretation in _PROFILED else None
        icc = _profile(source, profile, colours.shape[2])
        if profile is None and colours.shape[2] == 3 and exif is not None and metadata.is_adobe_rgb(exif):
            icc = colour.adobe_rgb_profile()
            source.notes.append("EXIF says Adobe RGB: a profile of it was added")
    reoriented = found.orientation != 1
    return Picture(
        colours,
        alpha,
        icc=icc,
        exif=None if exif is None else metadata.upright_exif(exif),
        xmp=metadata.upright_xmp(xmp) if reoriented and xmp is not None else xmp,
        iptc=found.blocks["iptc-data"],
        resolution=_resolution(image),
        text=found.text,
        comments=found.comments,
        format=source.format,
        notes=tuple(source.notes),
    )


def open_rows(
    path: Path, large: Callable[[int, int, int], bool], *, max_pixels: int | None = MAX_PIXELS
) -> RowPicture | None:
    """Open a picture to read it by rows; None where it is not large, or `read` needs all of it.

    large   whether a picture of (width, height, bytes a pixel) is to be read by rows

    It needs all of other formats than PNG, JPEG and TIFF, of animations, of 8-bit Lab, and of files that it repairs or
    refuses. Raises RestortError as `read` does.
    """
    source = _recognized(path, read_bytes(path, _most_bytes(max_pixels), first=formats.HEAD))
    if source.format not in BY_ROWS:
        return None
    pyvips = vips()
    load = partial(getattr(pyvips.Image, f"{source.format}load"), str(path), fail_on="error")
    try:
        image = load(access="sequential")
        if not large(image.width, image.height, image.bands * DTYPES[image.format].itemsize):
            return None
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            if _needs_all(source, data):
                return None
            limits.check_count(str(path), image.width, image.height, max_pixels)
            found = _metadata(source, data, image, 1)
        supported = _supported(source, image)
    except (pyvips.Error, OSError, KeyError, ValueError):
        return None  # `read` reports what is wrong
    source.notes += [] if found.note is None else [found.note]
    turned = supported.width, supported.height
    width, height = turned[::-1] if found.orientation in (5, 6, 7, 8) else turned
    colours = 1 if supported.bands < 3 else 3
    shape = height, width, colours + (supported.bands > colours)
    pixels = np.broadcast_to(np.zeros(1, DTYPES[supported.format]), shape)
    head = _described(
        source, supported, found, pixels[:, :, :colours], pixels[:, :, 0] if shape[2] > colours else None
    )
    in_order = found.orientation in (1, 2)

    def open_again() -> Any:
        image = _supported(_Source(path, source.format), load(access="sequential" if in_order else "random"))
        return turn_image(image, found.orientation)

    return with_alpha_range(RowPicture(head, None, open_again, source.failed))


def _needs_all(source: _Source, data: Content) -> bool:
    """Whether a file has something that only `read` handles."""
    if source.format == "tiff":
        _check_tiff(source, data)
        return tiff_tags.lab_as_rgb(data) is not None
    if source.format == "jpeg":
        return chunks.lacks_jpeg_end(data)
    return chunks.apng_frames(data) > 0 or chunks.has_compressed_text(data)


def open_lazily(path: Path, *, max_pixels: int | None = MAX_PIXELS) -> Any:
    """Return the libvips image of a file, within the limits of `read`; None for a format that libvips does not read.

    It decodes only what is asked of it. Neither the orientation nor a profile is applied.
    """
    data = read_bytes(path, _most_bytes(max_pixels))
    source = _recognized(path, data[: formats.HEAD])
    return _open_lazily(source, data, max_pixels)[0] if source.format in _LOADERS else None


def size_of(path: Path, *, max_pixels: int | None = MAX_PIXELS) -> tuple[int, int] | None:
    """Return (width, height) from the header of a picture, before its orientation is applied.

    None for HEIC, JPEG XL and camera raw, whose size their decoders tell. Raises as `read` does, without decoding.
    """
    data = read_bytes(path, _most_bytes(max_pixels))
    source = _recognized(path, data[: formats.HEAD])
    if source.format == "bmp":
        try:
            size = bmp_size(data)
        except DamagedBmp as error:
            raise source.failed(str(error)) from None
        limits.check_pixels(str(path), *size, max_pixels, 4)
        return size
    if source.format not in _LOADERS:
        return None
    image, _, _ = _open_lazily(source, data, max_pixels)
    return image.width, image.height


def _open_lazily(source: _Source, data: bytes, max_pixels: int | None) -> tuple[Any, int, bool]:
    """Return the image whose pixels are not decoded yet, the number of frames, and whether its RGB is 8-bit Lab."""
    pyvips = vips()
    decoded, frames, lab = data, 1, None
    if source.format == "tiff":
        _check_tiff(source, data)
        lab = tiff_tags.lab_as_rgb(data)
        decoded = data if lab is None else lab
    elif source.format == "png":
        decoded = chunks.without_png_text(data)
    elif source.format == "webp":
        decoded, frames = chunks.first_webp_frame(data)
    strict = "error"
    if source.format == "jpeg" and chunks.lacks_jpeg_end(data):
        # With an end of ours libjpeg only warns of missing pixels, so that warnings are errors.
        decoded, strict = data.removesuffix(b"\xff") + b"\xff\xd9", "warning"
    try:
        image = getattr(pyvips.Image, _LOADERS[source.format])(decoded, access="sequential", fail_on=strict)
    except pyvips.Error as error:
        raise source.failed(reason(error)) from None
    sample_bytes = image.bands * (2 if image.format == "ushort" else 1)
    limits.check_pixels(str(source.path), image.width, image.height, max_pixels, sample_bytes)
    if source.format == "gif" and not limits.gif_can_hold(len(data), image.width, image.height):
        raise source.failed(f"{len(data)} bytes cannot hold {image.width} x {image.height} pixels")
    return image, frames, lab is not None


def _check_tiff(source: _Source, data: Content) -> None:
    """Refuse old-style JPEG, which libvips decodes to transparent black if it is tiled."""
    found = tiff_tags.read_directory(data)
    if found is not None and found[1].number(tiff_tags.COMPRESSION, found[0]) == _OLD_JPEG:
        raise source.unsupported("this kind of TIFF file is not supported (old-style JPEG compression)")


def _profile(source: _Source, icc: bytes | None, channels: int) -> bytes | None:
    """Return the profile, cut to its length, if it fits the pixels; otherwise note that it is dropped."""
    if icc is None:
        return None
    repaired = colour.repaired_profile(icc)
    if repaired is None or colour.profile_channels(repaired) != channels:
        source.notes.append("the colour profile does not fit the pixels and was dropped")
        return None
    return repaired


def _block(image: Any, fields: set[str], key: str) -> bytes | None:
    value = image.get(key) if key in fields else None
    return value if isinstance(value, bytes) and value else None


def _beside_vips(
    source: _Source, data: Content, blocks: dict[str, bytes | None]
) -> tuple[tuple[chunks.Chunk, ...], tuple[bytes, ...]]:
    """Read metadata that libvips does not: return PNG text and JPEG comments, and complete `blocks`."""
    if source.format == "png":
        found = list(chunks.png_chunks(data))
        blocks["exif-data"] = blocks["exif-data"] or chunks.png_exif(found)
        blocks["xmp-data"] = blocks["xmp-data"] or chunks.png_xmp(found)
        return chunks.png_colour(found) + chunks.png_text(found), ()
    if source.format == "jpeg":
        return (), tuple(body for marker, body in chunks.jpeg_segments(data) if marker == b"\xfe" and body)
    if source.format == "tiff" and (directory := tiff_tags.read_directory(data)) is not None:
        blocks["exif-data"] = blocks["exif-data"] or tiff_tags.exif_of_tiff(*directory)
        values = directory[1].values
        if tiff_tags.GEOREFERENCE & values.keys():
            source.notes.append("its georeference (GeoTIFF) was left out")
        if tiff_tags.IPTC in values:
            blocks["iptc-data"] = values[tiff_tags.IPTC].data
        elif tiff_tags.PHOTOSHOP in values:
            blocks["iptc-data"] = tiff_tags.iptc_of_photoshop(values[tiff_tags.PHOTOSHOP].data)
    return (), ()


def _only_the_first(source: _Source, pages: int, data: Content) -> str | None:
    """Return the note on frames or pages that are not read; None where there is only one."""
    if (source.format == "png" and chunks.apng_frames(data)) or (
        source.format == "avif" and data[8:12] == b"avis"
    ):
        return "only the first frame of the animation was read"
    if pages < 2:
        return None
    what = "frames" if source.format in ("gif", "webp") else "pages"
    return f"only the first of {pages} {what} was read"


def _animation(
    source: _Source,
    data: bytes,
    first: Array,
    pages: int,
    orientation: int,
    max_pixels: int | None,
    note: str,
) -> tuple[Animation | None, str | None]:
    """Return all frames; or None and the note on the first, with the reason."""
    height, width, channels = first.shape
    count = chunks.apng_frames(data) if source.format == "png" else pages
    if first.dtype != np.uint8:
        return None, f"{note} (the others only of 8-bit animations)"
    if count > MAX_FRAMES:
        return None, f"{note} (all only of up to {MAX_FRAMES})"
    if width * height > MOST_PIXELS:
        return None, f"{note} (the others only of up to {MOST_PIXELS / 1e6:.0f} million pixels each)"
    if max_pixels is not None and count * width * height > max_pixels:
        return None, f"{note} (all have more than {max_pixels / 1e6:g} million pixels; raise --max-pixels)"
    gray, turn = source.format == "png" and channels == 1, partial(_upright, orientation=orientation)
    try:
        animation = read_animation(data, source.format, gray=gray, turn=turn)
    except Unreadable as error:
        return None, f"{note} ({error})"
    if len(animation) > 1:
        return animation, None
    return None, note if count > 1 or animation.start else None


def _note_losses(source: _Source, data: Content, blocks: dict[str, bytes | None]) -> None:
    """Note gain maps, further pictures and parts of the metadata that are not read."""
    segments = list(chunks.jpeg_segments(data)) if source.format == "jpeg" else []
    application = [body for marker, body in segments if marker == b"\xe2"]
    described_by = [body for marker, body in segments if marker == b"\xe1"]
    if any(body.startswith(b"http://ns.adobe.com/xmp/extension/") for body in described_by):
        source.notes.append("the extension of its XMP was left out")
    xmp = blocks["xmp-data"]
    described = xmp is not None and metadata.has_gain_map(xmp)
    if described or any(body.startswith(b"urn:iso:std:iso:ts:21496") for body in application):
        source.notes.append("the HDR gain map was dropped")
    elif any(body.startswith(b"MPF\0") for body in application):
        source.notes.append("only the first of several pictures in the file was read")
    if described and xmp is not None:
        blocks["xmp-data"] = metadata.without_gain_map(xmp)


def _lab(image: Any) -> Any:
    """8-bit CIELab that was loaded as RGB -> Lab as floats: L from 0..255 to 0..100, a and b are signed bytes."""
    planes = image.bandsplit()
    joined = planes[0].cast("float") * (100 / 255)
    for plane in planes[1:3]:
        joined = joined.bandjoin(plane.cast("float") - (plane > 127).ifthenelse(256, 0))
    return joined.copy(interpretation="lab")


def _is_gray_avif(data: bytes) -> bool:
    """Return whether all AV1 streams of the file, the picture and its alpha, have brightness alone."""
    place, flags = data.find(b"av1C"), []
    while place >= 0 and place + 7 <= len(data):
        flags.append(data[place + 6] & 0x10)
        place = data.find(b"av1C", place + 4)
    return bool(flags) and all(flags)


def _supported(source: _Source, image: Any) -> Any:
    """Convert `image` to 8 or 16 bit gray or RGB, with or without alpha; nothing is decoded yet."""
    space, bands = image.interpretation, image.bands
    if space in ("lab", "labs") and bands in (3, 4):
        source.notes.append("Lab was converted to sRGB")
        return image.colourspace("rgb16")
    if image.format in ("float", "double", "complex", "dpcomplex"):
        raise source.unsupported("its samples are floating-point numbers, whose white is not defined")
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
    """Split (H, W, 1 to 4) into colours and the alpha behind them, None without."""
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = np.ascontiguousarray(pixels[:, :, colours]) if pixels.shape[2] > colours else None
    return np.ascontiguousarray(pixels[:, :, :colours]), alpha


def _upright(pixels: Array, orientation: int) -> Array:
    """Turn and mirror (H, W, C) as the EXIF orientation 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def _resolution(image: Any) -> tuple[float, float] | None:
    """Pixels per millimetre, horizontal and vertical; libvips gives 1 if the file says nothing."""
    x, y = float(image.xres), float(image.yres)
    return None if (x, y) == (1.0, 1.0) or not 0 < x < 1e5 or not 0 < y < 1e5 else (x, y)
