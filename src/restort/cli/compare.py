"""`restort compare`: measure the difference between the results of two backends."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from restort.cli import choice, options
from restort.cli.bench import backends

if TYPE_CHECKING:
    from restort.profiling.sides import Side


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers, "compare", run, "measure the difference between the results of two backends, in numbers"
    )
    options.add_model(parser, required=True)
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        type=Path,
        nargs="*",
        help="pictures or folders (default: a fixed synthetic picture of 256x256 pixels)",
    )
    group = parser.add_argument_group("what to compare")
    sides = f"one of {', '.join(options.BACKENDS)}; its precision is fp32 unless given, as in openvino:bf16"
    group.add_argument("--backend", metavar="A[:PRECISION]", type=side, required=True, help=sides)
    group.add_argument(
        "--against", metavar="B[:PRECISION]", type=side, required=True, help="the reference, likewise"
    )
    group.add_argument("--blocks", action="store_true", help="also the output of every block of the network")
    group.add_argument(
        "--size", metavar="[BATCHx]HxW", type=size, help="take the middle HxW pixels of each picture only"
    )
    group.add_argument(
        "--epsilon",
        metavar="E",
        type=epsilon,
        default=1e-3,
        help="relative errors are |a - b| / (|b| + E) (default: 0.001)",
    )
    group.add_argument("--threads", metavar="N", type=options.positive, help="(default: all cores)")
    options.add_results(parser, "draw the errors by block (with --blocks)")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.errors import UsageError
    from restort.utils.extras import need
    from restort.utils.files import check_free, write_bytes

    if args.plot is not None:
        if not args.blocks:
            raise UsageError("--plot draws the errors by block; add --blocks")
        need("matplotlib", "plotting")
    for path in (args.output, args.plot):
        if path is not None:
            check_free(path, args.overwrite)
    from restort.profiling.comparison import compare
    from restort.profiling.samples import files, samples

    inputs = files(args.inputs)  # before a download
    weights, entry = choice.choose(args)
    comparison = compare(
        weights,
        args.backend,
        args.against,
        samples(weights.spec, inputs, args.size),
        name=None if entry is None else entry.name,
        blocks=args.blocks,
        epsilon=args.epsilon,
        threads=args.threads,
        progress=choice.ignore_message if args.quiet else choice.notify,
    )
    text = json.dumps(comparison.to_json(), indent=2, allow_nan=False)
    if args.output is not None:
        write_bytes(args.output, (text + "\n").encode(), overwrite=args.overwrite)
    if args.plot is not None:
        from restort.profiling.plots import block_errors

        write_bytes(args.plot, block_errors(comparison), overwrite=args.overwrite)
    print(text if args.json else comparison.table())
    return 0


def side(text: str) -> Side:
    """Parse 'openvino' or 'openvino:bf16'."""
    found = backends(text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one backend")
    [(backend, precision)] = found
    from restort.profiling.sides import Side

    return Side(backend, precision or "fp32")


def size(text: str) -> tuple[int, int, int]:
    """Parse 'HxW' or 'BxHxW' to (batch, height, width)."""
    numbers = options.sides(text, (2, 3))
    batch = numbers[0] if len(numbers) == 3 else 1
    return batch, numbers[-2], numbers[-1]


def epsilon(text: str) -> float:
    """Parse a number above 0."""
    return options.number(text, "a number above 0, such as 0.001", lambda value: 0 < value < 1e6)
