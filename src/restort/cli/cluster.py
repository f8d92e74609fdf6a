"""`restort cluster run`: restore a folder on the machines of a Ray cluster."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from restort.cli import choice, options
from restort.version import __version__

if TYPE_CHECKING:
    from restort.inference.batch import FileResult

MINUTE = 60.0


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "cluster", run, "restore a folder on many machines (Ray)")
    commands = parser.add_subparsers(title="commands", dest="what", metavar="run", required=True)
    running = options.command(
        commands,
        "run",
        run,
        "restore a folder on all machines of a Ray cluster",
        epilog="INPUT and OUTPUT must have the same paths on all machines. A second run, also of `restort run`, makes "
        "only what is missing or has changed.",
    )
    running.add_argument("input", metavar="INPUT", type=Path, help="a folder of pictures")
    running.add_argument("-o", "--output", metavar="OUTPUT", type=Path, required=True, help="a folder")
    running.add_argument(
        "--address",
        metavar="auto|local|HOST[:PORT]",
        default="auto",
        help="the Ray cluster: auto, that of this machine (default); local, Ray on this machine for this run",
    )
    running.add_argument(
        "--workers",
        metavar="N",
        type=options.positive,
        help="processes with a model each (default: one a GPU, or one a machine where there is none)",
    )
    running.add_argument(
        "--format", choices=options.FORMATS, help="format of the results (default: that of the input)"
    )
    options.add_model(running, required=True)
    options.add_backend(running)
    options.add_tiles(running)
    options.add_writing(running)
    options.add_reporting(running)


def run(args: argparse.Namespace) -> int:
    from restort.cluster import run as cluster
    from restort.imaging.decode import MAX_PIXELS
    from restort.imaging.encode import QUALITY
    from restort.inference.batch import Options

    resolved = choice.resolve(args)
    choice.load(args, resolved)  # a wrong file or a licence is reported here, once, and not by every worker
    left_out = _Suffixes()
    load = {name: getattr(args, name) for name in _LOADING}
    files = Options(
        args.overwrite,
        args.quality or QUALITY,
        MAX_PIXELS if args.max_pixels == "default" else args.max_pixels,
        args.retry,
    )
    progress = _Progress(quiet=args.quiet)
    totals = cluster.run(
        args.input,
        args.output,
        resolved.name if resolved.path is None else resolved.path.absolute(),
        load,
        files,
        address=args.address,
        workers=args.workers,
        suffix=None if args.format is None else f".{args.format}",
        left_out=left_out,
        seen=progress.end,
        notify=choice.ignore_message if args.quiet else choice.notify,
    )
    status = 130 if totals.interrupted else 1 if totals.failed else 0
    if not args.quiet:
        if left_out.kinds:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in left_out.kinds.most_common())
            choice.notify(f"left out, because these formats cannot be read: {kinds}")
        start = "interrupted: " if totals.interrupted else ""
        choice.notify(
            f"{start}{totals.done} done, {totals.skipped} up to date, {totals.failed} failed in {totals.seconds:.1f} s"
        )
    if args.json:
        report = {
            "restort": __version__,
            "command": "cluster run",
            "status": status,
            "totals": totals.to_json(),
            "failures": [result.to_json() for result in totals.failures],
        }
        print(json.dumps(report, indent=2))
    return status


_LOADING = ("backend", "precision", "tile", "overlap", "strength", "threads", "offline")
"""Options that are arguments of restort.load."""


class _Suffixes(list[Path]):
    """Counts files by suffix instead of holding them: there may be millions."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()

    def append(self, path: Path) -> None:
        self.kinds[path.suffix.lower()] += 1


class _Progress:
    """Print failures at once, and a line a minute. How many pictures there are is not known before all are listed."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._count: Counter[str] = Counter()
        self._start = self._last = time.monotonic()

    def end(self, result: FileResult) -> None:
        from restort.inference.progress import failure
        from restort.utils.text import rate_text, to_stderr

        self._count[result.status] += 1
        if result.status == "failed":
            to_stderr(failure(result))
        now = time.monotonic()
        if not self._quiet and now - self._last >= MINUTE:
            self._last = now
            rate = (self._count["done"] + self._count["failed"]) / (now - self._start)
            counts = ", ".join(f"{number} {status}" for status, number in self._count.items())
            to_stderr(f"restort: {counts}, {rate_text(rate)}")
