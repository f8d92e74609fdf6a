"""Replace the EXIF block that libvips writes, of the tags it knows, by the one of the input."""

from __future__ import annotations

import struct
import zlib

_EXIF = b"Exif\0\0"
_LARGEST_SEGMENT = 65_533


def replace_exif(data: bytes, name: str, exif: bytes, dpi: tuple[float, float] | None) -> bytes:
    """Return the JPEG, PNG or WebP file `data` with another EXIF block; as it is, where it has none or no room.

    dpi   a resolution that `exif` lacks, written into the JFIF header of JPEG; WebP has no other place for it
    """
    block = exif.removeprefix(_EXIF)
    match name:
        case "jpeg":
            return _in_jpeg(data, _EXIF + block, dpi)
        case "png":
            return _in_png(data, block)
        case "webp" if dpi is None:
            return _in_webp(data, block)
    return data


def _in_jpeg(data: bytes, body: bytes, dpi: tuple[float, float] | None) -> bytes:
    place, header = 2, b""
    if dpi is not None and not data.startswith(b"\xff\xe0", 2):
        dots = [min(max(round(value), 1), 65_535) for value in dpi]
        header = b"\xff\xe0\0\x10JFIF\0\1\1" + struct.pack(">BHHBB", 1, *dots, 0, 0)
    while len(body) <= _LARGEST_SEGMENT and data[place] == 0xFF and 0xE0 <= data[place + 1] <= 0xEF:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xE1 and data[place + 4 : place + 10] == _EXIF:
            segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
            return data[:2] + header + data[2:place] + segment + data[end:]
        place = end
    return data


def _in_png(data: bytes, body: bytes) -> bytes:
    place = 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"eXIf":
            check = struct.pack(">I", zlib.crc32(b"eXIf" + body))
            return data[:place] + struct.pack(">I", len(body)) + b"eXIf" + body + check + data[end:]
        place = end
    return data


def _in_webp(data: bytes, body: bytes) -> bytes:
    place = 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + length + length % 2
        if data[place : place + 4] == b"EXIF":
            if data[place + 8 : place + 14] == _EXIF:
                body = _EXIF + body
            chunk = b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
            changed = data[:place] + chunk + data[end:]
            return changed[:4] + struct.pack("<I", len(changed) - 8) + changed[8:]
        place = end
    return data
