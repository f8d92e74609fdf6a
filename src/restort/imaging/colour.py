"""Colour profiles: which one fits the pixels, and the way to sRGB for what the networks do not take."""

from __future__ import annotations

from typing import Any

from restort.imaging.vips import to_array, to_vips, vips
from restort.utils.array_types import Array

_SPACES = {b"RGB ": 3, b"GRAY": 1, b"CMYK": 4}


def srgb_profile() -> bytes:
    """The ICC profile of sRGB that libvips brings."""
    return bytes(vips().Operation.call("profile_load", "srgb"))


def profile_channels(icc: bytes) -> int | None:
    """How many colour channels a profile is for, by its header; None where it is no ICC profile."""
    if len(icc) < 128 or icc[36:40] != b"acsp":
        return None
    return _SPACES.get(icc[16:20])


def is_srgb(icc: bytes) -> bool:
    """Whether the profile names itself sRGB (as ASCII or as UTF-16 text)."""
    return b"sRGB" in icc or "sRGB".encode("utf-16-be") in icc


def cmyk_to_srgb(image: Any) -> Any:
    """An image of libvips in CMYK -> in sRGB, through its own profile or, without one, the built-in one."""
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
    """(H, W, 3) in the colours of `icc` -> (H, W, 3) in sRGB, same depth."""
    image = to_vips(pixels)
    image.set_type(vips().GValue.blob_type, "icc-profile-data", icc)
    depth = 16 if image.format == "ushort" else 8
    return to_array(image.icc_transform("srgb", embedded=True, intent="relative", depth=depth))
