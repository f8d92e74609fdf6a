"""Which file formats there are: by their first bytes when reading, by their suffix when writing.

The binary wheel of pyvips brings PNG, JPEG, WebP, TIFF, GIF and AVIF; BMP comes through Pillow. HEIC with
HEVC pictures, JPEG XL, JPEG 2000, OpenEXR, Radiance and camera raw are not in it and are named in the error.
"""

from __future__ import annotations

from pathlib import Path

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

READ_SUFFIXES = frozenset(suffix for suffixes in READABLE.values() for suffix in suffixes)
WRITE_SUFFIXES = {suffix: name for name in WRITABLE for suffix in READABLE[name]}
READ_LIST = ", ".join(NAMES[name] for name in READABLE)
WRITE_LIST = ", ".join(WRITE_SUFFIXES)

RAW_SUFFIXES = frozenset(
    (
        ".dng",
        ".nef",
        ".nrw",
        ".cr2",
        ".cr3",
        ".arw",
        ".sr2",
        ".srf",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
        ".3fr",
        ".iiq",
    )
)

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
    (b"P5", "PGM"),
    (b"P6", "PPM"),
)


def sniff(head: bytes) -> str | None:
    """The readable format whose first bytes `head` (at least 16) holds, or None."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        return "avif"
    return None


def foreign(head: bytes) -> str | None:
    """The name of a known format that cannot be read here, or None."""
    return next((name for signature, name in _FOREIGN if head.startswith(signature)), None)


def output_format(path: Path) -> str | None:
    """The format that a file of this name is written in, by its suffix; None where there is none."""
    return WRITE_SUFFIXES.get(path.suffix.lower())
