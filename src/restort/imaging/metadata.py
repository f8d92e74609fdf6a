"""EXIF and XMP made true again after the orientation was applied and the pixels changed.

Only what would be wrong is changed: the orientation, and the embedded thumbnail, which shows the picture
before the restoration. Everything else travels as it is. libvips updates the pixel dimensions and the
resolution on saving.
"""

from __future__ import annotations

import re
import struct

ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>\s*))[2-8]""")


def upright_exif(exif: bytes) -> bytes:
    """The EXIF block with orientation 1 and without its thumbnail; the block as it is where it is malformed.

    The thumbnail lies in the second directory: cutting the link to it is enough, since the library that
    writes the block drops what nothing leads to.
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
        struct.pack_into(order + "I", block, base + first + 2 + 12 * count, 0)
    except struct.error:
        return exif
    return bytes(block)


def upright_xmp(xmp: bytes) -> bytes:
    """The XMP packet with tiff:Orientation 1; its length stays."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def has_gain_map(xmp: bytes) -> bool:
    """Whether the packet belongs to a JPEG with an HDR gain map behind the picture."""
    return b"http://ns.adobe.com/hdr-gain-map/1.0/" in xmp
