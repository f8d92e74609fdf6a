"""The short forms of the public API; `restort.load` and `Model` are in inference/model.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy.typing as npt

from restort.inference.model import Model, Restored, load

if TYPE_CHECKING:
    from restort.weights.catalogue import Entry

Array = npt.NDArray[Any]


@overload
def restore(image: Array, *, model: str | Path | Model, **options: Any) -> Array: ...


@overload
def restore(
    image: str | Path, target: str | Path, *, model: str | Path | Model, **options: Any
) -> Restored: ...


def restore(
    image: Array | str | Path,
    target: str | Path | None = None,
    *,
    model: str | Path | Model,
    **options: Any,
) -> Array | Restored:
    """Restores one image: an array into an array, or a file into a file.

    image     an array as `Model.__call__` takes it, or the path of a picture
    target    where the picture goes, for a path; an existing file is replaced only with `overwrite=True`
    model     a name of the catalogue, a file of weights, or a Model; for more than one image `load` it once
    options   those of `load` (backend, precision, tile, overlap, strength, threads, offline), and for files those of
              `Model.restore_file` (overwrite, quality, max_pixels)

    Raises RestortError, one sentence, for whatever cannot be done.
    """
    names = {"overwrite", "quality", "max_pixels"} & options.keys()
    of_file: dict[str, Any] = {key: options.pop(key) for key in names}
    if isinstance(model, Model):
        if options:
            raise TypeError(f"{', '.join(options)}: set by load(), not for a model that is loaded already")
        return _restore(image, target, model, of_file)
    with load(model, **options) as loaded:
        return _restore(image, target, loaded, of_file)


def _restore(
    image: Array | str | Path, target: str | Path | None, model: Model, options: dict[str, Any]
) -> Array | Restored:
    if isinstance(image, (str, Path)):
        if target is None:
            raise TypeError("restore() of a path needs a target, the path of the output")
        return model.restore_file(image, target, **options)
    if target is not None or options:
        raise TypeError("restore() of an array takes neither a target nor options of files")
    return model(image)


def list_models() -> tuple[Entry, ...]:
    """Every set of weights there is: shipped and downloadable, with task, scale, size and licence."""
    from restort.weights.catalogue import entries

    return entries()
