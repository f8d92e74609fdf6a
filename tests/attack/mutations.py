"""Sound files of every kind, and ways to damage them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from restort.imaging.chunks import PNG_SIGNATURE

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Values at which lengths, counts and signs go wrong."""

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def pictures() -> dict[str, bytes]:
    """A small file of each format and kind, with all the metadata that it can hold."""
    pixels = np.random.default_rng(7).integers(0, 256, (12, 17, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05"}
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "a person")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    text.add_text("Comment", "packed " * 20, zip=True)
    moving = {"save_all": True, "append_images": [Image.fromarray(np.roll(pixels, 4, 1))]}
    all_metadata = {"exif": exif.tobytes(), "icc_profile": icc}
    kinds = {
        "png": _saved(image, "PNG", pnginfo=text, **all_metadata),
        "png-palette": _saved(image.convert("P"), "PNG", transparency=3),
        "png-gray-alpha": _saved(image.convert("LA"), "PNG"),
        "png-16": _saved(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
        "apng": _saved(image, "PNG", **moving),
        "jpeg": _saved(image, "JPEG", xmp=XMP, comment=b"a comment", **all_metadata),
        "jpeg-cmyk": _saved(image.convert("CMYK"), "JPEG"),
        "jpeg-progressive": _saved(image, "JPEG", progressive=True),
        "webp": _saved(image, "WEBP", xmp=XMP, **all_metadata),
        "webp-lossless": _saved(image.convert("RGBA"), "WEBP", lossless=True),
        "webp-moving": _saved(image, "WEBP", **moving),
        "tiff": _saved(image, "TIFF", **all_metadata),
        "tiff-lzw": _saved(image.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": _saved(image, "TIFF", compression="jpeg"),
        "tiff-bilevel": _saved(image.convert("1"), "TIFF", compression="group4"),
        "tiff-pages": _saved(image, "TIFF", **moving),
        "gif": _saved(image.convert("P"), "GIF", **moving),
        "bmp": _saved(image, "BMP"),
        "bmp-palette": _saved(image.convert("P"), "BMP"),
        "avif": _saved(image, "AVIF", **all_metadata),
        "avif-moving": _saved(image, "AVIF", **moving),
    }
    lossy = b"\x08\1\2\3\4\5\6\7\0\0" + b"\5\1" * 3 + b"\0\0" + b"\0\2\3\1" + b"\4\7\0\1"  # run-length codes
    header = struct.pack("<IiiHHIIiiII", 40, 17, 12, 1, 8, 1, len(lossy), 2835, 2835, 256, 0)
    start = 54 + 1024
    kinds["bmp-rle"] = (
        b"BM" + struct.pack("<IHHI", start + len(lossy), 0, 0, start) + header + bytes(1024) + lossy
    )
    return kinds


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated(random: np.random.Generator, seeds: Mapping[str, bytes]) -> bytes:
    """Damage one of `seeds` in one to six places. PNG checksums are put right half of the time."""
    names = sorted(seeds)
    data = bytearray(seeds[names[random.integers(len(names))]])
    other = seeds[names[random.integers(len(names))]]
    for _ in range(random.integers(1, 7)):
        if len(data) < 4:
            break
        # headers, where most fields lie, are hit as often as all the rest
        place = int(random.integers(min(len(data), 96) if random.random() < 0.5 else len(data)))
        size = int(random.integers(1, 40))
        match random.integers(8):
            case 0:
                data[place] ^= 1 << int(random.integers(8))
            case 1:
                data[place] = int(random.integers(256))
            case 2:
                order, width = ("<", ">")[random.integers(2)], "BHI"[random.integers(3)]
                number = NUMBERS[random.integers(len(NUMBERS))] & (1 << 8 * struct.calcsize(width)) - 1
                value = struct.pack(order + width, number)
                data[place : place + len(value)] = value
            case 3:
                del data[place : place + size]
            case 4:
                data[place:place] = data[place : place + size]
            case 5:
                data[place:place] = random.bytes(size)
            case 6:
                begin = int(random.integers(len(other)))
                data[place : place + size] = other[begin : begin + size]
            case _:
                del data[max(place, 4) :]
    return right_checksums(bytes(data)) if random.random() < 0.5 else bytes(data)


def right_checksums(data: bytes) -> bytes:
    """Put the CRC of every PNG chunk right, so that damage reaches what lies behind the check."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    result, place = bytearray(data), len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        result[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(result)
