"""What a client asks for: text fields, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restort.errors import UsageError
from restort.imaging.encode import QUALITY
from restort.inference.api import suited_model
from restort.inference.resolve import ACCEPTED, resolve_model
from restort.tiling.tiles import TileOption
from restort.weights.catalogue import default_for, find

FORMATS = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "tif": "image/tiff",
    "avif": "image/avif",
    "bmp": "image/bmp",
}
"""Formats of results, each with its media type."""
ALIASES = {"jpeg": "jpg", "tiff": "tif"}
FIELDS = ("task", "scale", "model", "format", "strength", "tile", "quality")
ENDINGS = {"denoise": "denoised", "dejpeg": "dejpeg", "deblur": "deblurred"}


@dataclass(frozen=True)
class Request:
    """How a picture is to be restored; the fields are the options of the command line.

    task       a key of ACCEPTED; None where `model` says all
    scale      of `upscale`; None for the default
    model      a name of the catalogue; None for the one that the command would take
    format     of the result, a key of FORMATS
    strength   share of the result, 0 to 1
    tile       'auto', 'exact', 'none' or the edge in pixels, as text
    quality    1 to 100
    """

    task: str | None = None
    scale: int | None = None
    model: str | None = None
    format: str = "png"
    strength: float = 1.0
    tile: str = "auto"
    quality: int = QUALITY

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def edge(self) -> TileOption:
        """`tile` as restort.inference.resolve.RunOptions takes it."""
        if self.tile == "none":
            return None
        named: dict[str, TileOption] = {"auto": "auto", "exact": "exact"}
        return named[self.tile] if self.tile in named else int(self.tile)

    def model_for(self, source: Path) -> str:
        """Return the model that restores this file, the one that the command line takes. Raises RestortError."""
        if self.model is None and self.task == "upscale":
            return suited_model(source, self.scale or default_for("upscale", None).scale)
        return resolve_model(self.model, task=self.task, scale=self.scale).name

    def result_name(self, name: str, scale: int) -> str:
        """The name of the result of a file `name`, as the command line names it beside its input."""
        ending = f"x{scale}" if scale > 1 else ENDINGS.get(self.task or "", "restored")
        return f"{Path(name).stem or 'picture'}_{ending}.{self.format}"


def parse(fields: Mapping[str, str]) -> Request:
    """Check the fields of a form or a query; empty ones count as not given. Raises UsageError with one sentence."""
    given = {name: str(value).strip() for name, value in fields.items() if str(value).strip()}
    unknown = given.keys() - set(FIELDS)
    if unknown:
        raise UsageError(f"the field {min(unknown)!r} is not known; use {', '.join(FIELDS)}")
    task, model = given.get("task"), given.get("model")
    if task is not None and task not in ACCEPTED:
        raise UsageError(f"the task {task!r} is not known; use {', '.join(ACCEPTED)}")
    if task is None and model is None:
        raise UsageError(f"the field task is missing; give one of {', '.join(ACCEPTED)}, or a model")
    format = given.get("format", "png").lower()
    format = ALIASES.get(format, format)
    if format not in FORMATS:
        raise UsageError(f"the format {format!r} cannot be written; use {', '.join(FORMATS)}")
    scale = None if "scale" not in given else _whole("scale", given["scale"], 2, 4)
    if scale is not None and task not in (None, "upscale"):
        raise UsageError(f"scale is for upscale, not for {task}; leave it out")
    tile = given.get("tile", "auto").lower()
    if tile not in ("auto", "exact", "none"):
        tile = str(_whole("tile", tile, 32, 1 << 16))
    request = Request(
        task,
        scale,
        model,
        format,
        _share(given.get("strength", "1")),
        tile,
        _whole("quality", given.get("quality", str(QUALITY)), 1, 100),
    )
    if model is not None:  # a name of the catalogue only: clients name no files of the server
        resolve_model(find(model).name, task=task, scale=scale)
    elif task != "upscale" or scale is not None:
        resolve_model(None, task=task, scale=scale)
    return request


def _whole(name: str, text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}, not {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"strength must be a number from 0 to 1, not {text!r}")
    return value
