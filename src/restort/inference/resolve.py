"""Resolve the arguments of a command or of `restort.load` once: which weights, and how they run.

`resolve_model` and `RunOptions` raise every error that needs neither a download nor a library, so that a wrong request
fails before any work. All later code takes their results instead of names and flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from restort.errors import UsageError
from restort.inference.exact import check_exact
from restort.tiling.tiles import TileOption

if TYPE_CHECKING:
    from restort.runner import Notify
    from restort.weights.catalogue import Entry
    from restort.weights.checkpoint import Weights

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
"""A model's name that ends in one of these is the path of a file."""

ACCEPTED = {
    "upscale": {"upscale"},
    "denoise": {"denoise"},
    "dejpeg": {"dejpeg"},
    "deblur": {"deblur", "defocus"},
}
"""For each command, the tasks of weights that it runs."""


@dataclass(frozen=True)
class RunOptions:
    """How a model runs; the constructor checks the options.

    backend     a key of restort.backends.registry.BACKENDS, or 'auto'
    precision   one of restort.runner.PRECISIONS, or 'auto'
    tile        edge of the tiles in pixels of the input, 'auto' (by free memory), 'exact' (Restormer, strip by strip)
                or None (the whole picture)
    overlap     smallest overlap of tiles in pixels of the input; None for the measured default
    strength    share of the result in the output, 0 to 1; the rest is the input
    threads     of the processor; None for all cores

    Raises UsageError for options that no model can run with, RestortError for a backend that cannot be used here.
    """

    backend: str = "auto"
    precision: str = "auto"
    tile: TileOption = "auto"
    overlap: int | None = None
    strength: float = 1.0
    threads: int | None = None

    def __post_init__(self) -> None:
        from restort.backends.registry import check

        for name in ("overlap", "threads"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise UsageError(f"{name} must be a whole number or None, not {value!r}")
        if isinstance(self.tile, str) and self.tile not in ("auto", "exact"):
            raise UsageError(f"tile must be 'auto', 'exact', None or a number of pixels, not {self.tile!r}")
        if not isinstance(self.strength, (int, float)) or not 0 <= self.strength <= 1:
            raise UsageError(f"the strength must lie between 0 and 1, not {self.strength!r}")
        check(self.backend, self.precision, self.threads)
        if self.tile == "exact":
            check_exact(self.backend, self.precision, self.overlap)


@dataclass(frozen=True)
class ResolvedModel:
    """The weights that a name, a file or a task stands for, before they are read or downloaded.

    path    a file that the user names; None for an entry of the catalogue
    entry   of the catalogue; None for a file
    task    of the command that runs them, a key of ACCEPTED; None where any weights do
    scale   that the user asks for; None for that of the weights
    """

    path: Path | None
    entry: Entry | None
    task: str | None = None
    scale: int | None = None

    @property
    def name(self) -> str:
        """Name in the catalogue, or the file's name without its suffix."""
        if self.entry is not None:
            return self.entry.name
        assert self.path is not None
        return self.path.stem

    def load(self, *, offline: bool, notice: Notify, notify: Notify, progress: bool | None = None) -> Weights:
        """Read the weights, after downloading them if need be, and check them against the task and the scale.

        notice     receives the licence before a download
        notify     receives a sentence where the file held several sets of weights
        progress   whether a download shows a bar on stderr; None for only on a terminal
        """
        from restort.weights.checkpoint import load_weights

        weights = load_weights(self._file(offline, notice, progress))
        if weights.note is not None:
            notify(weights.note)
        self._check(weights)
        return weights

    def _file(self, offline: bool, notice: Notify, progress: bool | None) -> Path:
        if self.entry is None:
            assert self.path is not None
            return self.path
        from restort.weights.download import path_of

        return path_of(self.entry, offline=offline, notice=notice, progress=progress)

    def _check(self, weights: Weights) -> None:
        name, enlarges = str(self.path or self.name), weights.spec.scale > 1
        if self.task == "upscale" and not enlarges:
            raise UsageError(
                f"{name} is for another task: a network that does not enlarge; use `restort run`, denoise, dejpeg or "
                "deblur"
            )
        if self.task not in (None, "upscale") and enlarges:
            raise UsageError(
                f"{name} is for another task: it enlarges {weights.spec.scale} times; use `restort upscale`"
            )
        tasks = declared_tasks(weights)
        if self.entry is None and self.task is not None and tasks and ACCEPTED[self.task].isdisjoint(tasks):
            raise UsageError(
                f"{name} is for another task, {' and '.join(tasks)}, than {self.task}; use `restort run` to try it "
                "anyway"
            )
        _check_scale(name, weights.spec.scale, self.scale)


def resolve_model(
    model: str | Path | None, *, task: str | None = None, scale: int | None = None
) -> ResolvedModel:
    """Return the weights that `model` stands for.

    model   a name of the catalogue, or a file: a Path, or text with a folder in it or a suffix of WEIGHTS_SUFFIXES;
            None for the default of the task
    task    of the command, a key of ACCEPTED; None where any weights do
    scale   that the user asks for

    Raises UsageError for an unknown name, for weights of another task or scale, and where a task has no default.
    """
    from restort.weights.catalogue import default_for, find

    if model is None:
        if task is None:
            raise UsageError("no model was given; use --model NAME or --weights FILE")
        return ResolvedModel(None, default_for(task, scale), task, scale)
    if not isinstance(model, (str, Path)):
        raise UsageError(f"a model is a name or the path of a file, not {type(model).__name__}")
    if isinstance(model, Path) or model.lower().endswith(WEIGHTS_SUFFIXES) or "/" in model or "\\" in model:
        return ResolvedModel(Path(model).expanduser(), None, task, scale)
    entry = find(model)
    if task is not None and ACCEPTED[task].isdisjoint(entry.tasks):
        fitting = next((name for name, tasks in ACCEPTED.items() if entry.task in tasks), "run")
        raise UsageError(
            f"{entry.name} is for another task, {' and '.join(entry.tasks)}, than {task}; use `restort {fitting}` or "
            "another model"
        )
    _check_scale(entry.name, entry.scale, scale)
    return ResolvedModel(None, entry, task, scale)


def declared_tasks(weights: Weights) -> tuple[str, ...]:
    """Return the tasks that a file of weights declares, the main one first; empty where it declares none."""
    from restort.weights.catalogue import parse_tasks

    return ("upscale",) if weights.spec.scale > 1 else parse_tasks(weights.metadata, weights.spec.scale)


def _check_scale(name: str, scale: int, wanted: int | None) -> None:
    if wanted is not None and wanted != scale:
        raise UsageError(
            f"--scale {wanted} was asked for, but {name} enlarges {scale} times; leave --scale out or choose another "
            "model"
        )
