"""File formats: recognised by their first bytes when reading, chosen by the suffix when writing.

libvips, as the binary wheel of pyvips brings it, reads PNG, JPEG, WebP, TIFF, GIF and AVIF; Pillow reads BMP. HEIC,
JPEG XL and camera raw need the extra `formats`. Other known formats (Photoshop, OpenEXR ...) are named in the error.
"""

from __future__ import annotations

import functools
from pathlib import Path

from restort.imaging import extra_formats

READABLE = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "avif": (".avif",),
}
WRITABLE = ("png", "jpeg", "webp", "tiff", "bmp", "avif")
NAMES = {
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "tiff": "TIFF",
    "bmp": "BMP",
    "gif": "GIF",
    "avif": "AVIF",
}

WRITE_SUFFIXES = {suffix: name for name in WRITABLE for suffix in READABLE[name]}
READ_LIST = ", ".join(NAMES[name] for name in READABLE)
WRITE_LIST = ", ".join(WRITE_SUFFIXES)

RAW_SUFFIXES = frozenset(
    (
        *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".sr2", ".srf", ".orf"),
        *(".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq"),
    )
)
"""Camera raw; most of these files are TIFF inside."""

EXTRA = {"heic": (".heic", ".heif", ".hif"), "jxl": (".jxl",), "raw": tuple(RAW_SUFFIXES)}
"""Formats that the extra `formats` reads."""
EXTRA_NAMES = {"heic": "HEIC", "jxl": "JPEG XL", "raw": "camera raw"}
WRITTEN_AS = {"heic": ".jpg", "raw": ".tif"}
"""Suffix of results where the format of the input is not written; .png for all others."""


@functools.cache
def read_suffixes() -> frozenset[str]:
    """The suffixes of the formats that can be read with what is installed."""
    extra = [suffixes for name, suffixes in EXTRA.items() if extra_formats.installed(name)]
    return frozenset(suffix for suffixes in (*READABLE.values(), *extra) for suffix in suffixes)


KNOWN_SUFFIXES = RAW_SUFFIXES | frozenset(
    (
        *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".psb", ".xcf", ".kra"),
        *(".exr", ".hdr", ".dds", ".tga", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".ico"),
        *(".svg", ".eps", ".cr", ".crw", ".dcr", ".kdc", ".mrw", ".x3f", ".erf", ".mos"),
    )
)
"""Suffixes of pictures that RestoRT does not read: a folder with them is told so."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
)
_FOREIGN = (
    (b"II*\0\x10\0\0\0CR", "camera raw (CR2)"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"IIU\0", "camera raw (RW2)"),
    *((start, "camera raw (ORF)") for start in (b"IIRO", b"IIRS", b"MMOR")),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    *((b"P%d" % number, "PNM") for number in range(1, 7)),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\0\0\1\0", "ICO"),
)
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    "camera raw (CR3)": (b"crx ",),
    "video": (b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V "),
}
"""Brands in the first box of ISO base media files."""
HEAD = 64
"""Bytes from the start of a file that tell its format."""


def sniff(head: bytes) -> str | None:
    """Return the format of a file by its first `HEAD` bytes, of READABLE or EXTRA; None if it is another one."""
    known = foreign(head)
    if known is not None:
        extra = {"HEIC": "heic", "JPEG XL": "jxl"}
        return "raw" if known.startswith("camera raw") else extra.get(known)
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "avif" if _brand(head) == "AVIF" else None


def foreign(head: bytes) -> str | None:
    """Return the name of a known format that RestoRT does not read; None for others."""
    name = next((name for signature, name in _FOREIGN if head.startswith(signature)), None)
    brand = _brand(head)
    return name or (brand if brand != "AVIF" else None)


def remedy(foreign_name: str) -> str:
    """Say what to do with a file of a format that RestoRT does not read."""
    if foreign_name.startswith("camera raw"):
        return "develop it to a 16-bit TIFF first"
    if foreign_name == "video":
        return "save a frame of it as PNG first"
    return "convert it to JPEG or PNG first"


def _brand(head: bytes) -> str | None:
    """The kind of an ISO base media file: the main brand decides, for general ones the compatible brands."""
    if head[4:8] != b"ftyp":
        return None
    brands = [
        head[8:12],
        *(head[i : i + 4] for i in range(16, min(int.from_bytes(head[:4], "big"), HEAD), 4)),
    ]
    for brand in brands:
        for name, known in _BRANDS.items():
            if brand in known:
                return name
    return "AVIF" if brands[0] in (b"mif1", b"msf1") else None


def result_suffix(path: Path) -> str:
    """Return the suffix of the result of a file whose own format RestoRT does not write."""
    suffix = path.suffix.lower()
    return next((WRITTEN_AS[name] for name in WRITTEN_AS if suffix in EXTRA[name]), ".png")


def output_format(path: Path) -> str | None:
    """Return the format for a file of this name, by its suffix; None if RestoRT does not write it."""
    return WRITE_SUFFIXES.get(path.suffix.lower())
