"""`restort.restore` and `restort.list_models`; `restort.load` and `Model` are in restort.inference.model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from restort.errors import UsageError
from restort.inference.model import Model, load
from restort.inference.pillow_images import is_pillow
from restort.inference.results import Restored

if TYPE_CHECKING:
    from PIL.Image import Image

    from restort.weights.catalogue import Entry

Array = npt.NDArray[Any]

_LOAD_OPTIONS = {"backend", "precision", "tile", "overlap", "strength", "threads", "offline", "notify"}
_FILE_OPTIONS = {"overwrite", "quality", "max_pixels"}


@overload
def restore(
    image: Array, *, model: str | Path | Model | None = None, scale: int | None = None, **options: Any
) -> Array: ...


@overload
def restore(
    image: Image, *, model: str | Path | Model | None = None, scale: int | None = None, **options: Any
) -> Image: ...


@overload
def restore(
    image: str | Path,
    target: str | Path,
    *,
    model: str | Path | Model | None = None,
    scale: int | None = None,
    **options: Any,
) -> Restored: ...


def restore(
    image: Array | Image | str | Path,
    target: str | Path | None = None,
    *,
    model: str | Path | Model | None = None,
    scale: int | None = None,
    **options: Any,
) -> Array | Image | Restored:
    """Restore one image: an array to an array, a PIL.Image to a PIL.Image, or a file to a file.

    image     an array or PIL.Image as `Model.__call__` takes it, or the path of a picture
    target    the file to write, where `image` is a path; an existing file is replaced only with `overwrite=True`
    model     a name of the catalogue, a file of weights, or a Model; for more than one image `load` it once
    scale     without a model: enlarge 2, 3 or 4 times, by the weights that suit the damage of the image
    options   of `load` (backend, precision, tile, overlap, strength, threads, offline, notify), and for files of
              `Model.restore_file` (overwrite, quality, max_pixels)

    Raises RestortError, one sentence, for every failure; UsageError for wrong arguments.
    """
    unknown = options.keys() - _LOAD_OPTIONS - _FILE_OPTIONS
    if unknown:
        names = ", ".join(sorted(_LOAD_OPTIONS | _FILE_OPTIONS))
        raise UsageError(f"unknown option {min(unknown)!r} of restore(); use {names}")
    of_file = {key: options.pop(key) for key in _FILE_OPTIONS & options.keys()}
    _check_target(image, target, of_file)
    if model is None:
        model = suited_model(image, scale)
    elif scale is not None:
        raise UsageError("restore() takes either a model or a scale; leave one out")
    if not isinstance(model, Model):
        with load(model, **options) as loaded:
            return _restore(image, target, loaded, of_file)
    if options:
        raise UsageError(
            f"{', '.join(sorted(options))} cannot be set for a model that is loaded; give it to restort.load()"
        )
    return _restore(image, target, model, of_file)


def _check_target(
    image: Array | Image | str | Path, target: str | Path | None, of_file: dict[str, Any]
) -> None:
    """Raise UsageError where `target` and the options of files do not go with the kind of `image`."""
    if isinstance(image, (str, Path)):
        if target is None:
            raise UsageError("restore() of a file needs a target; give the path of the output")
    elif target is not None or of_file:
        given = "a target" if target is not None else ", ".join(sorted(of_file))
        raise UsageError(
            f"restore() of an array takes no {given.removeprefix('a ')}; give the path of a picture"
        )


def _restore(
    image: Array | Image | str | Path, target: str | Path | None, model: Model, of_file: dict[str, Any]
) -> Array | Image | Restored:
    if isinstance(image, (str, Path)):
        assert target is not None
        return model.restore_file(image, target, **of_file)
    return model(image)


def suited_model(image: Array | Image | str | Path, scale: int | None) -> str:
    """Return the name of the weights that enlarge this image best: those for damaged pictures where it is damaged."""
    from restort.imaging.picture import Picture
    from restort.inference.damage import damage_of
    from restort.weights.catalogue import default_for, default_for_damaged

    if scale is None:
        raise UsageError("restore() needs a model, or a scale to enlarge by")
    usual = default_for("upscale", scale)
    photo = default_for_damaged("upscale", scale)
    if photo is None:
        return usual.name
    if isinstance(image, (str, Path)):
        return usual.name if damage_of(image) is None else photo.name
    if is_pillow(image):
        image = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    # Only 8 and 16 bit, gray or RGB, can be measured; whatever else is wrong with an array is reported by the model.
    if (
        not isinstance(image, np.ndarray)
        or image.dtype.name not in ("uint8", "uint16")
        or image.ndim not in (2, 3)
        or 0 in image.shape
    ):
        return usual.name
    colours = image[..., None] if image.ndim == 2 else image[..., : 1 if image.shape[2] < 3 else 3]
    return usual.name if damage_of(Picture(colours)) is None else photo.name


def list_models() -> tuple[Entry, ...]:
    """Return every set of weights, shipped and downloadable, with tasks, scale, size and licence."""
    from restort.weights.catalogue import entries

    return entries()
