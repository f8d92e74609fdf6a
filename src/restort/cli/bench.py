"""`restort bench`: measure how fast a model runs here and how much memory it takes, alone or over a folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.cli import choice, options
from restort.errors import UsageError

if TYPE_CHECKING:
    from restort.profiling.sides import Side


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "bench", run, "measure latency, throughput and peak memory")
    options.add_model(parser, required=True)
    group = parser.add_argument_group("what to measure: every combination, each in a process of its own")
    group.add_argument(
        "--backend",
        metavar="A,B,...",
        type=backends,
        help=f"some of {', '.join(options.BACKENDS)}; openvino:bf16 also sets its precision (default: all that work)",
    )
    group.add_argument(
        "--precision",
        metavar="P,Q,...",
        type=precisions,
        help=f"some of {', '.join(options.PRECISIONS)}, for backends that --backend sets none for (default: fp32; "
        "with --folder what a run would choose)",
    )
    group.add_argument(
        "--size",
        metavar="HxW",
        type=size,
        nargs="+",
        help="height and width of the input in pixels (default: 256x256)",
    )
    group.add_argument("--batch", metavar="N", type=options.positive, nargs="+", help="(default: 1)")
    group = parser.add_argument_group("or a whole folder, files in and files out")
    group.add_argument(
        "--folder",
        metavar="DIR",
        type=Path,
        help="restore its pictures into a temporary folder; then the same by a plain loop of PyTorch, if installed",
    )
    group.add_argument(
        "--format", choices=options.FORMATS, help="of the results (default: that of the input)"
    )
    group.add_argument(
        "--no-peer", action="store_true", help="leave out the plain loop, which may take much longer"
    )
    group = parser.add_argument_group("how")
    group.add_argument(
        "--seconds",
        metavar="S",
        type=seconds,
        default=5.0,
        help="time of the calls in every case (default: 5)",
    )
    group.add_argument(
        "--limit",
        metavar="S",
        type=seconds,
        default=300.0,
        help="a case fails if it takes longer, loading included (default: 300)",
    )
    group.add_argument(
        "--alone",
        action="store_true",
        help="run the cases one after the other; otherwise those of one size and batch take turns, all in memory",
    )
    group.add_argument("--threads", metavar="N", type=options.positive, help="(default: all cores)")
    group.add_argument("--name", metavar="NAME", help="name of the network in the records (default: its own)")
    options.add_results(parser, "draw latency by size and throughput by batch")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.utils.extras import need
    from restort.utils.files import check_free

    for path in (args.output, args.plot):
        if path is not None:
            check_free(path, args.overwrite)
    if args.plot is not None:
        need("matplotlib", "plotting")
    if args.folder is not None:
        return _folder(args)
    for name in ("format", "no_peer"):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for a folder; give one with --folder DIR")
    weights, entry = choice.choose(args)
    from restort.profiling.speed import Settings, bench, table

    records = bench(
        Settings(
            weights.path,
            args.name or (entry.name if entry is not None else weights.path.stem),
            weights.spec,
            weights.digest,
            _sides(args),
            args.size or [(256, 256)],
            args.batch or [1],
            args.seconds,
            args.limit,
            args.threads,
            args.alone,
            choice.ignore_message if args.quiet else choice.notify,
        )
    )
    from restort.profiling.plots import speed

    return _report(args, records, table, speed)


def _folder(args: argparse.Namespace) -> int:
    """Measure a folder, beside the plain loop."""
    from restort.inference.model import assemble
    from restort.inference.resolve import RunOptions
    from restort.profiling.folder_bench import eager_loop, measure, table
    from restort.profiling.plots import folders

    for name in ("size", "batch", "alone"):
        if getattr(args, name):
            raise UsageError(f"--{name} has no meaning for the pictures of --folder; leave it out")
    asked = args.backend or [("auto", None)]
    if len(asked) > 1 or len(args.precision or []) > 1:
        raise UsageError("--folder measures one backend in one precision at a time; give one of each")
    [(backend, own)], precision = asked, args.precision or ["auto"]
    notify = choice.ignore_message if args.quiet else choice.notify
    resolved = choice.resolve(args)
    computing = RunOptions(backend, own or precision[0], "auto", None, 1.0, args.threads)
    suffix = None if args.format is None else f".{args.format}"
    workload = args.name and f"{args.name} {args.folder.name}"
    with assemble(choice.load(args, resolved), resolved, computing, notify=notify) as model:
        notify(f"{model.name} on {model.backend}, {model.precision}")
        records = [measure(model, args.folder, suffix=suffix, workload=workload)]
        if not args.no_peer:
            notify("the same by a plain loop of PyTorch")
            peer = eager_loop(model, args.folder, suffix=suffix, workload=workload, seconds=args.limit)
            records += [] if peer is None else [peer]
    return _report(args, records, table, folders)


def _report(
    args: argparse.Namespace,
    records: list[dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], str],
    plot: Callable[[list[dict[str, Any]]], bytes],
) -> int:
    """Write and print the records; return the exit status."""
    from restort.utils.files import write_bytes

    text = json.dumps({"records": records}, indent=2, allow_nan=False)
    if args.output is not None:
        write_bytes(args.output, (text + "\n").encode(), overwrite=args.overwrite)
    print(text if args.json else table(records))
    if args.plot is not None:
        write_bytes(args.plot, plot(records), overwrite=args.overwrite)
    return 1 if any(record["error"] is not None for record in records) else 0


def _sides(args: argparse.Namespace) -> list[Side]:
    from restort.backends.registry import status
    from restort.errors import RestortError
    from restort.profiling.sides import Side

    asked = args.backend or [(backend.name, None) for backend in status() if backend.works]
    if not asked:
        raise RestortError("no backend works here; `restort doctor` reports what to install")
    pairs = [(name, p) for name, own in asked for p in ([own] if own else args.precision or ["fp32"])]
    return [Side(*pair) for pair in dict.fromkeys(pairs)]


def backends(text: str) -> list[tuple[str, str | None]]:
    """Parse 'a,b:bf16' to [('a', None), ('b', 'bf16')]."""
    found: list[tuple[str, str | None]] = []
    for part in text.split(","):
        name, _, precision = part.strip().partition(":")
        if name not in options.BACKENDS:
            raise argparse.ArgumentTypeError(
                f"unknown backend {name!r}; use {', '.join(options.BACKENDS[:-1])} or {options.BACKENDS[-1]}"
            )
        found.append((name, precisions(precision)[0] if precision else None))
    return found


def precisions(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    for name in found:
        if name not in options.PRECISIONS:
            raise argparse.ArgumentTypeError(
                f"unknown precision {name!r}; use {', '.join(options.PRECISIONS[:-1])} or {options.PRECISIONS[-1]}"
            )
    return found


def size(text: str) -> tuple[int, int]:
    """Parse 'HxW' to (height, width)."""
    height, width = options.sides(text, (2,))
    return height, width


def seconds(text: str) -> float:
    """Parse a number of seconds above 0."""
    return options.number(text, "a number of seconds above 0", lambda value: 0 < value < 1e6)
