"""Restore images of Pillow: from the argument of `Model.__call__` to its result."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from restort.errors import RestortError
from restort.inference.arrays import Restorer, array_through
from restort.runner import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

_KEPT = ("icc_profile", "exif", "xmp", "dpi")
"""Metadata in `Image.info` that stays true for the result; Pillow writes it where a `save` is told to."""


def is_pillow(image: object) -> TypeGuard[Image]:
    """Return whether `image` is an image of Pillow, which need not be imported for other images."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def pillow_through(model: Restorer, image: Image, progress: Progress | None) -> Image:
    """Restore an image of the modes 1, L, LA, P, PA, RGB, RGBA, RGBX or I;16.

    Palettes become RGB or, with transparency, RGBA; black and white becomes gray. The orientation in EXIF is not
    applied: pixels and EXIF stay as they are.
    """
    from PIL import Image as pillow

    try:
        image.load()
        array: Any = np.asarray(_plain(image))
    except RestortError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged files
        text = str(error) or type(error).__name__
        raise RestortError(f"cannot read the Pillow image: {text}; open or download it again") from None
    if array.dtype != np.uint8:
        array = array.astype(np.uint16)  # I;16B is big-endian
    result = pillow.fromarray(array_through(model, array, progress))
    result.info.update({key: image.info[key] for key in _KEPT if key in image.info})
    return result


def _plain(image: Image) -> Image:
    """Convert to a mode whose array is gray or RGB, with or without alpha."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" in image.info:
        return image.convert("LA" if mode == "L" else "RGBA")
    if mode in ("L", "LA", "RGB", "RGBA") or mode.startswith("I;16"):
        return image
    if mode in ("P", "PA"):
        return image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    if mode in ("1", "RGBX"):
        return image.convert("L" if mode == "1" else "RGB")
    raise RestortError(f"a Pillow image of mode {mode} cannot be restored; convert it to RGB or L first")
