"""EXIF and XMP corrected after the orientation was applied and the pixels changed.

Only values that would be wrong change: the orientation, and the embedded thumbnail, which shows the picture before the
restoration. Everything else stays byte for byte: maker notes point to places in their block, which a block that is
written anew does not keep. The pixel dimensions are corrected on saving (`sized_exif`).
"""

from __future__ import annotations

import re
import struct

from restort.imaging.tiff_tags import EXIF_IFD, HEIGHT, INTEROP_IFD, WIDTH, read_directory

ORIENTATION, X_RESOLUTION = 0x0112, 0x011A
_GAIN_MAP = b"http://ns.adobe.com/hdr-gain-map/1.0/"
_GAIN_MAP_PARTS = (
    re.compile(rb"<hdrgm:(\w+)\b[^>]*?(?:/>|>.{0,4000}?</hdrgm:\1\s*>)", re.DOTALL),
    re.compile(rb"""\s+hdrgm:\w+\s*=\s*(?:"[^"]*"|'[^']*')"""),
    re.compile(rb"""\s+xmlns:hdrgm\s*=\s*(?:"[^"]*"|'[^']*')"""),
    re.compile(rb"<Container:Directory\b.{0,20000}?</Container:Directory\s*>", re.DOTALL),
)
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>\s*))[2-8]""")


def upright_exif(exif: bytes) -> bytes:
    """Set the orientation of an EXIF block to 1 and remove the thumbnail; a malformed block stays as it is.

    The thumbnail lies in the second directory; its bytes become zeros and the link to it is cut.
    """
    block = bytearray(exif)
    base = 6 if exif[:6] == b"Exif\0\0" else 0
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[base : base + 2]))
    if order is None:
        return exif
    try:
        (first,) = struct.unpack_from(order + "I", block, base + 4)
        (count,) = struct.unpack_from(order + "H", block, base + first)
        for i in range(count):
            entry = base + first + 2 + 12 * i
            tag, kind, length = struct.unpack_from(order + "HHI", block, entry)
            if tag == ORIENTATION and kind == 3 and length == 1:
                struct.pack_into(order + "H", block, entry + 8, 1)
        link = base + first + 2 + 12 * count
        _blank_thumbnail(block, base, struct.unpack_from(order + "I", block, link)[0], order)
        struct.pack_into(order + "I", block, link, 0)
    except struct.error:
        return exif
    return bytes(block)


def _blank_thumbnail(block: bytearray, base: int, place: int, order: str) -> None:
    """Overwrite the JPEG that the directory at `place` points to; it may show what was cut off or hidden since."""
    if not place:
        return
    found = {}
    try:
        (count,) = struct.unpack_from(order + "H", block, base + place)
        for entry in range(base + place + 2, base + place + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHII", block, entry)
            found[tag] = value
    except struct.error:
        return
    start, length = base + found.get(0x0201, 0), found.get(0x0202, 0)
    if 0x0201 in found and block[start : start + 2] == b"\xff\xd8" and start + length <= len(block):
        block[start : start + length] = bytes(length)


def sized_exif(exif: bytes, width: int, height: int) -> bytes | None:
    """Set the pixel dimensions in an EXIF block, where it has them; None for a malformed block."""
    block = bytearray(exif)
    base = 6 if exif[:6] == b"Exif\0\0" else 0
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[base : base + 2]))
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", block, base + 4)
        inner = _patched(block, base, first, order, {0x0100: width, 0x0101: height})
        if inner is not None:
            _patched(block, base, inner, order, {WIDTH: width, HEIGHT: height})
    except struct.error:
        return None
    return bytes(block)


def _patched(block: bytearray, base: int, place: int, order: str, numbers: dict[int, int]) -> int | None:
    """Set SHORT and LONG values of the directory at `place`; return where the EXIF directory is that it points to."""
    (count,) = struct.unpack_from(order + "H", block, base + place)
    inner = None
    for entry in range(base + place + 2, base + place + 2 + 12 * count, 12):
        tag, kind, length, value = struct.unpack_from(order + "HHII", block, entry)
        if tag in numbers and kind in (3, 4) and length == 1:
            if kind == 3 and numbers[tag] <= 0xFFFF:
                struct.pack_into(order + "H", block, entry + 8, numbers[tag])
            else:  # LONG holds every size
                struct.pack_into(order + "HHII", block, entry, tag, 4, 1, numbers[tag])
        elif tag == EXIF_IFD:
            inner = value
    return inner


def is_adobe_rgb(exif: bytes) -> bool:
    """Return whether an EXIF block marks Adobe RGB: interoperability R03 (DCF) or, out of standard, colour space 2."""
    found = read_directory(exif.removeprefix(b"Exif\0\0"))
    inner = None if found is None else found[1].children.get(EXIF_IFD)
    if found is None or inner is None:
        return False
    interop = inner.children.get(INTEROP_IFD)
    index = None if interop is None else interop.values.get(1)
    colours = inner.number(0xA001, found[0])
    return colours == 2 or (colours != 1 and index is not None and index.data[:3] == b"R03")


def exif_has_resolution(exif: bytes) -> bool:
    """Return whether the first directory of an EXIF block gives a resolution."""
    found = read_directory(exif.removeprefix(b"Exif\0\0"))
    return found is not None and X_RESOLUTION in found[1].values


def upright_xmp(xmp: bytes) -> bytes:
    """Set tiff:Orientation of an XMP packet to 1; the length stays."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def has_gain_map(xmp: bytes) -> bool:
    """Return whether the XMP packet describes an HDR gain map that lies behind the picture."""
    return _GAIN_MAP in xmp


def without_gain_map(xmp: bytes) -> bytes | None:
    """Remove what describes a gain map from an XMP packet: its properties, its namespace, the list of pictures.

    None, no packet, for one that is larger than a segment of JPEG: no camera writes it, and the search takes long.
    """
    if len(xmp) > 1 << 16:
        return None
    for pattern in _GAIN_MAP_PARTS:
        xmp = pattern.sub(b"", xmp)
    return xmp


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 without one."""
    found = read_directory(exif.removeprefix(b"Exif\0\0"))
    value = None if found is None else found[1].values.get(ORIENTATION)
    if found is None or value is None or value.kind != 3 or value.count != 1:
        return 1
    (number,) = struct.unpack(found[0] + "H", value.data)
    return int(number) if 1 <= number <= 8 else 1
