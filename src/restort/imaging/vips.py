"""libvips: imported on first use, silent, without its cache of operations."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.utils.array_types import Array

_GLIB_LEVELS = 8 | 16 | 32 | 64 | 128  # critical, warning, message, info, debug
FORMATS = {"uint8": "uchar", "uint16": "ushort"}
DTYPES = {name: np.dtype(key) for key, name in FORMATS.items()}


@functools.cache
def vips() -> Any:
    """Import pyvips.

    libvips sends its warnings to the logger `pyvips`. Without a handler there they must not reach the terminal.
    """
    logging.getLogger("pyvips").addHandler(logging.NullHandler())
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise RestortError(f"libvips cannot be loaded ({error}); run: pip install 'pyvips[binary]'") from None

    # Messages quote damaged files. pyvips decodes them strictly, which prints a traceback or replaces its own Error.
    def text(words: Any) -> str:
        return "NULL" if words == pyvips.ffi.NULL else str(pyvips.ffi.string(words), "utf-8", "replace")

    for module in (pyvips, pyvips.error):
        if hasattr(module, "_to_string"):
            module._to_string = text
    # pyvips takes over the messages of libvips alone; GLib prints its own to the terminal for damaged headers.
    handler = getattr(pyvips, "_log_handler_cb", None)
    if handler is not None:
        for domain in (b"GLib", b"GLib-GObject"):
            pyvips.glib_lib.g_log_set_handler(domain, _GLIB_LEVELS, handler, pyvips.ffi.NULL)
    # The cache identifies an operation by the address of its buffer, and addresses are reused.
    pyvips.cache_set_max(0)
    return pyvips


def reason(error: Exception) -> str:
    """Return the last line of a libvips error, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    text = lines[-1] if lines else "it cannot be decoded"
    return text if len(text) <= 120 else text[:117] + "..."


def to_vips(pixels: Array) -> Any:
    """Wrap (H, W, C) uint8 or uint16 in a libvips image without a copy; C is 1 (gray) or 3 (sRGB), and 1 for alpha."""
    pixels = np.ascontiguousarray(pixels)
    height, width, bands = pixels.shape
    image = vips().Image.new_from_memory(
        pixels.data.cast("B"), width, height, bands, FORMATS[pixels.dtype.name]
    )
    gray, deep = bands < 3, pixels.dtype == np.uint16
    return image.copy(interpretation=("grey16" if deep else "b-w") if gray else ("rgb16" if deep else "srgb"))


def to_array(image: Any) -> Array:
    """Decode a libvips image of 8 or 16 bit unsigned samples: (H, W, C)."""
    flat = np.frombuffer(image.write_to_memory(), DTYPES[image.format])
    return flat.reshape(image.height, image.width, image.bands)
