"""Which weights a command runs: those asked for, if they fit it, or the default of its task."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from restort.errors import UsageError

if TYPE_CHECKING:
    from restort.inference.model import Model
    from restort.weights.catalogue import Entry
    from restort.weights.checkpoint import Weights

ACCEPTED = {
    "upscale": {"upscale"},
    "denoise": {"denoise"},
    "dejpeg": {"dejpeg"},
    "deblur": {"deblur", "defocus"},
}
"""For each command, the tasks of weights that it runs."""


def say(line: str) -> None:
    """A message to the person at the terminal; stdout is left to results."""
    from restort.utils.text import printable

    print(f"restort: {printable(line)}", file=sys.stderr, flush=True)


def silent(line: str) -> None:
    pass


def choose(args: argparse.Namespace, task: str | None = None) -> tuple[Weights, Entry | None]:
    """The weights of `--model`, `--weights` or, with neither, the default of the task.

    Raises UsageError for weights of another task or scale than the command's, before anything is fetched.
    """
    from restort.weights.checkpoint import load_weights
    from restort.weights.download import path_of

    scale = getattr(args, "scale", None)
    entry = _entry(args, task)
    if entry is None:
        weights = load_weights(args.weights.expanduser())
        if weights.note is not None:
            say(weights.note)
        _check_weights(weights, task, scale)
        return weights, None
    # The licence is told even to those who want quiet: they accept it by fetching the file.
    bar = False if getattr(args, "quiet", False) else None
    weights = load_weights(path_of(entry, offline=args.offline, notice=say, progress=bar))
    _check_weights(weights, task, scale, entry)
    return weights, entry


def _entry(args: argparse.Namespace, task: str | None) -> Entry | None:
    """The entry of the catalogue that the options ask for; None for `--weights`."""
    from restort.weights.catalogue import default_for, find

    scale = getattr(args, "scale", None)
    if args.weights is not None:
        return None
    if args.model is not None:
        entry = find(args.model)
    elif task is not None:
        entry = default_for(task, scale)
    else:
        raise UsageError("say which model: --model NAME or --weights FILE")
    _check_entry(entry, task, scale)
    return entry


def check(args: argparse.Namespace, task: str | None = None) -> None:
    """Raises the errors of `open_model` that the options alone can tell; nothing is fetched or loaded for it."""
    from restort.inference.model import check_options

    _entry(args, task)
    check_options(args.backend, args.precision, args.tile, args.overlap, args.threads)


def open_model(args: argparse.Namespace, task: str | None = None) -> Model:
    """The model of the command line's options."""
    from restort.inference.model import assemble

    weights, entry = choose(args, task)
    if weights.spec.in_channels not in (1, 3):
        raise UsageError(
            f"these weights take {weights.spec.in_channels} channels, a pair of dual-pixel pictures, which the command "
            "line cannot read; use them from Python (restort.load)"
        )
    return assemble(
        weights,
        entry,
        backend=args.backend,
        precision=args.precision,
        tile=getattr(args, "tile", "auto"),
        overlap=getattr(args, "overlap", None),
        strength=getattr(args, "strength", 1.0),
        threads=args.threads,
        say=silent if args.quiet else say,
    )


def _check_entry(entry: Entry, task: str | None, scale: int | None) -> None:
    if task is not None and ACCEPTED[task].isdisjoint(entry.tasks):
        fit = next((name for name, tasks in ACCEPTED.items() if entry.task in tasks), "run")
        raise UsageError(
            f"{entry.name} is for another task, {' and '.join(entry.tasks)}, than {task}; use `restort {fit}` or "
            "another model"
        )
    _check_scale(entry.name, entry.scale, scale)


def _check_weights(weights: Weights, task: str | None, scale: int | None, entry: Entry | None = None) -> None:
    from restort.inference.model import known_tasks

    name = entry.name if entry is not None else str(weights.path)
    if task == "upscale" and weights.spec.scale == 1:
        raise UsageError(
            f"{name} is for another task: a network that does not enlarge; use `restort run`, denoise, dejpeg or deblur"
        )
    if task in ("denoise", "dejpeg", "deblur") and weights.spec.scale > 1:
        raise UsageError(
            f"{name} is for another task: it enlarges {weights.spec.scale} times; use `restort upscale`"
        )
    known = known_tasks(weights)
    if entry is None and task is not None and known and ACCEPTED[task].isdisjoint(known):
        raise UsageError(
            f"{name} is for another task, {' and '.join(known)}, than {task}; use `restort run` to try it anyway"
        )
    _check_scale(name, weights.spec.scale, scale)


def _check_scale(name: str, scale: int, wanted: int | None) -> None:
    if wanted is not None and wanted != scale:
        raise UsageError(
            f"--scale {wanted} was asked for, but {name} enlarges {scale} times; leave --scale out or choose another "
            "model"
        )
