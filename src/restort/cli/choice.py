"""From parsed arguments to the model and the options of a command, resolved once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restort.inference.model import Model
    from restort.inference.resolve import ResolvedModel, RunOptions
    from restort.weights.catalogue import Entry
    from restort.weights.checkpoint import Weights


def notify(line: str) -> None:
    """Print a message on stderr; stdout is for results."""
    from restort.utils.text import printable, to_stderr

    to_stderr(f"restort: {printable(line)}")


def ignore_message(line: str) -> None:
    """Print nothing."""


def resolve(args: argparse.Namespace, task: str | None = None) -> ResolvedModel:
    """Return the weights of --weights, --model or the task's default. Raises UsageError where they do not fit."""
    from restort.inference.resolve import resolve_model

    return resolve_model(args.weights or args.model, task=task, scale=getattr(args, "scale", None))


def run_options(args: argparse.Namespace) -> RunOptions:
    """Return the checked options of computing."""
    from restort.inference.resolve import RunOptions

    strength = getattr(args, "strength", 1.0)
    return RunOptions(args.backend, args.precision, args.tile, args.overlap, strength, args.threads)


def open_model(args: argparse.Namespace, resolved: ResolvedModel, options: RunOptions) -> Model:
    """Load the weights and make the runner."""
    from restort.errors import UsageError
    from restort.inference.model import assemble

    weights = load(args, resolved)
    if weights.spec.in_channels not in (1, 3):
        raise UsageError(
            f"{resolved.name} takes {weights.spec.in_channels} channels, a pair of dual-pixel pictures, which the "
            "command line cannot read; use it from Python (restort.load)"
        )
    return assemble(weights, resolved, options, notify=ignore_message if args.quiet else notify)


def load(args: argparse.Namespace, resolved: ResolvedModel) -> Weights:
    """Read the weights, after downloading them if need be.

    --quiet hides the bar of a download but not the licence: fetching a file accepts it.
    """
    return resolved.load(
        offline=args.offline, notice=notify, notify=notify, progress=False if args.quiet else None
    )


def choose(args: argparse.Namespace) -> tuple[Weights, Entry | None]:
    """Resolve and load the weights of a command that measures or exports any network."""
    resolved = resolve(args)
    return load(args, resolved), resolved.entry
