"""The door to libvips: imported on first use, quiet, and without its cache of operations."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.utils.array_types import Array

_GLIB_LEVELS = 8 | 16 | 32 | 64 | 128  # critical, warning, message, info, debug
FORMATS = {"uint8": "uchar", "uint16": "ushort"}


@functools.cache
def vips() -> Any:
    """The pyvips module.

    libvips hands its warnings to Python's logging under the name pyvips; an application that wants them adds
    a handler there, and without one they must not end up on the terminal.
    """
    logging.getLogger("pyvips").addHandler(logging.NullHandler())
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise RestortError(
            f"libvips cannot be loaded ({error}); install it with: pip install 'pyvips[binary]'"
        ) from None
    # pyvips takes the messages of libvips only; a damaged header makes GLib itself complain on the terminal.
    handler = getattr(pyvips, "_log_handler_cb", None)
    if handler is not None:
        for domain in (b"GLib", b"GLib-GObject"):
            pyvips.glib_lib.g_log_set_handler(domain, _GLIB_LEVELS, handler, pyvips.ffi.NULL)
    # Operations are cached by the address of their buffer, and every picture here is read once.
    pyvips.cache_set_max(0)
    return pyvips


def reason(error: Exception) -> str:
    """The telling line of a libvips error, without the function that failed."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    text = lines[-1] if lines else "it cannot be decoded"
    return text if len(text) <= 120 else text[:117] + "..."


def to_vips(pixels: Array) -> Any:
    """(H, W, C) uint8 or uint16 -> an image of libvips over the same memory: gray, sRGB, or with alpha after
    them."""
    pixels = np.ascontiguousarray(pixels)
    height, width, bands = pixels.shape
    image = vips().Image.new_from_memory(
        pixels.data.cast("B"), width, height, bands, FORMATS[pixels.dtype.name]
    )
    gray, wide = bands < 3, pixels.dtype == np.uint16
    return image.copy(interpretation=("grey16" if wide else "b-w") if gray else ("rgb16" if wide else "srgb"))


def to_array(image: Any) -> Array:
    """An image of libvips, 8 or 16 bit unsigned -> (H, W, C); this is where it is decoded."""
    dtype = {name: np.dtype(key) for key, name in FORMATS.items()}[image.format]
    flat = np.frombuffer(image.write_to_memory(), dtype)
    return flat.reshape(image.height, image.width, image.bands)
