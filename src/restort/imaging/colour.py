"""ICC profiles: which one fits the pixels, and conversion to sRGB of colours that networks do not take."""

from __future__ import annotations

import struct
from typing import Any

from restort.imaging.vips import to_array, to_vips, vips
from restort.utils.array_types import Array

_SPACES = {b"RGB ": 3, b"GRAY": 1, b"CMYK": 4}


def srgb_profile() -> bytes:
    """Return the sRGB profile of libvips."""
    return bytes(vips().Operation.call("profile_load", "srgb"))


def adobe_rgb_profile() -> bytes:
    """Make a profile of Adobe RGB (1998): its primaries adapted to D50, gamma 563/256."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = b"Compatible with Adobe RGB (1998)\0"
    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563) + b"\0\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(8 + 3 + 67),
        b"cprt": b"text\0\0\0\0No copyright\0",
        b"wtpt": xyz(0.95045, 1, 1.08905),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(table) + len(body), b"\0" * 4, 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(0.9642, 1, 0.8249)[8:]
    return head.ljust(128, b"\0") + table + body


def profile_channels(icc: bytes) -> int | None:
    """Read the number of colour channels from the header of a profile; None if it is no ICC profile."""
    if len(icc) < 128 or icc[36:40] != b"acsp":
        return None
    return _SPACES.get(icc[16:20])


def repaired_profile(icc: bytes) -> bytes | None:
    """Cut off bytes behind the end that the header of a profile gives; None for an incomplete profile.

    Scanners pad profiles, and libpng refuses a profile of another length than its header says.
    """
    length = int.from_bytes(icc[:4], "big")
    return icc[:length] if 132 <= length <= len(icc) and length % 4 == 0 else None


def is_srgb(icc: bytes) -> bool:
    """Return whether the profile names itself sRGB (as ASCII or as UTF-16 text)."""
    return b"sRGB" in icc or "sRGB".encode("utf-16-be") in icc


def cmyk_to_srgb(image: Any) -> Any:
    """Convert a libvips image from CMYK to sRGB, by its own profile or, without one, that of libvips."""
    depth = 16 if image.format == "ushort" else 8
    return image.icc_transform(
        "srgb",
        embedded=True,
        input_profile="cmyk",
        intent="relative",
        black_point_compensation=True,
        depth=depth,
    )


def pixels_to_srgb(pixels: Array, icc: bytes) -> Array:
    """Convert (H, W, 3) from the colours of `icc` to sRGB; same dtype."""
    image = to_vips(pixels)
    image.set_type(vips().GValue.blob_type, "icc-profile-data", icc)
    depth = 16 if image.format == "ushort" else 8
    return to_array(image.icc_transform("srgb", embedded=True, intent="relative", depth=depth))
