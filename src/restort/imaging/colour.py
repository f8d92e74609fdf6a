"""ICC profiles: which one fits the pixels, and conversion to sRGB of colours that networks do not take."""

from __future__ import annotations

from typing import Any

from restort.imaging.vips import to_array, to_vips, vips
from restort.utils.array_types import Array

_SPACES = {b"RGB ": 3, b"GRAY": 1, b"CMYK": 4}


def srgb_profile() -> bytes:
    """Return the sRGB profile of libvips."""
    return bytes(vips().Operation.call("profile_load", "srgb"))


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
    """Whether the profile names itself sRGB (as ASCII or as UTF-16 text)."""
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
