"""Restore NumPy arrays: from the argument of `Model.__call__` to its result."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError, not_finite
from restort.imaging.blend import blend
from restort.imaging.picture import LUMA, Picture
from restort.models.spec import Spec
from restort.runner import Progress

Array = npt.NDArray[Any]


class Restorer(Protocol):
    """The methods of restort.inference.model.Model that this module uses."""

    name: str
    strength: float

    @property
    def spec(self) -> Spec: ...
    def restore_picture(self, picture: Picture, *, progress: Progress | None = None) -> Picture: ...
    def run(
        self, x: npt.NDArray[np.float32], progress: Progress | None = None, *, bits: int = 8
    ) -> npt.NDArray[np.float32]: ...


def array_through(model: Restorer, image: Array, progress: Progress | None) -> Array:
    """Restore any array that `Model.__call__` takes."""
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise RestortError(f"an array of shape {image.shape} is not an image; give (H, W) or (H, W, C)")
    planes = image[:, :, None] if image.ndim == 2 else image
    channels, wanted = planes.shape[2], model.spec.in_channels
    if planes.dtype in (np.uint8, np.uint16) and channels <= 4:
        alpha = planes[:, :, -1] if channels in (2, 4) else None
        colours = planes if alpha is None else planes[:, :, :-1]
        result = model.restore_picture(Picture(colours, alpha), progress=progress)
        restored = result.pixels if result.alpha is None else np.dstack([result.pixels, result.alpha])
    elif channels in (1, 3, wanted):
        restored = _floats_through(model, planes, progress)
    else:
        raise RestortError(
            f"an array of {channels} channels and type {image.dtype} does not fit {model.name}, which takes {wanted}"
        )
    return restored[:, :, 0] if image.ndim == 2 else restored


def _floats_through(model: Restorer, planes: Array, progress: Progress | None) -> Array:
    """Restore (H, W, C) in floating point: (H * scale, W * scale, C') of the type of `planes`."""
    if planes.dtype in (np.uint8, np.uint16):
        peak = float(np.iinfo(planes.dtype).max)
    elif planes.dtype.kind == "f":
        peak = 1.0
        low, high = float(planes.min()), float(planes.max())
        if not np.isfinite([low, high]).all():
            raise RestortError("the image holds NaN or infinity; give finite values in [0, 1]")
        if low < -1 or high > 2:
            raise RestortError(
                f"the image has values from {low:g} to {high:g}; floating-point images need [0, 1]; divide by 255"
            )
    else:
        raise RestortError(
            f"an image of type {planes.dtype} cannot be restored; give uint8, uint16 or float32"
        )
    x = (planes.transpose(2, 0, 1).astype(np.float32) / np.float32(peak))[None]
    if x.shape[1] != model.spec.in_channels:
        x = x.transpose(1, 0, 2, 3) if model.spec.in_channels == 1 else x.repeat(3, axis=1)
    x = np.ascontiguousarray(np.clip(x, 0, 1))
    y = model.run(x, progress, bits=16 if planes.dtype == np.uint16 else 8)
    if not np.isfinite(y).all():
        raise not_finite()
    if model.strength != 1:
        y = blend(y, x, model.strength)
    if y.shape[0] > 1:
        y = y.transpose(1, 0, 2, 3)
    elif planes.shape[2] == 1 and y.shape[1] == 3:
        y = np.tensordot(np.asarray(LUMA, np.float32), y, axes=(0, 1))[:, None]
    y = np.clip(y[0].transpose(1, 2, 0), 0, 1)
    restored: Array = y if peak == 1 else np.rint(y * np.float32(peak))
    return restored.astype(planes.dtype)
