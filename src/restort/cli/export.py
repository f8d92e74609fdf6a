"""`restort export`: weights to an ONNX file, or to a plan (restort.cli.export_aot)."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from restort.cli import choice, export_aot, options

if TYPE_CHECKING:
    from restort.export.graph import Precision


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers, "export", run, "writes a model as an ONNX file, or as a plan of RestoRT's own kernels"
    )
    options.add_model(parser, required=True)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the file to write, .onnx or .plan (default for a plan: into the cache folder, where builds find it)",
    )
    parser.add_argument(
        "--format", choices=("onnx", "plan"), default="onnx", help="what to write (default: onnx)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="of weights and arithmetic (default: fp32; of a plan fp16; bf16 is for plans)",
    )
    export_aot.add(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.errors import UsageError
    from restort.utils.files import check_free, write_bytes

    if args.format == "plan":
        return export_aot.run(args)
    precision = _checked(args)
    if args.output.suffix.lower() != ".onnx":
        raise UsageError(f"{args.output} is no name of an ONNX file; let it end in .onnx")
    check_free(args.output, args.overwrite)
    start = time.perf_counter()
    weights, entry = choice.choose(args)
    from restort.export.emit import emit

    model = emit(weights, precision)
    data = model.SerializeToString()
    write_bytes(args.output, data, overwrite=args.overwrite)
    seconds = time.perf_counter() - start
    name = entry.name if entry is not None else weights.path.stem
    if args.json:
        report = {
            "command": "export",
            "status": 0,
            "model": name,
            "sha256": weights.digest,
            "target": str(args.output),
            "precision": precision,
            "nodes": len(model.graph.node),
            "bytes": len(data),
            "metadata": {item.key: item.value for item in model.metadata_props},
            "seconds": round(seconds, 3),
        }
        print(json.dumps(report, indent=2))
    if not args.quiet:
        choice.say(
            f"{name} -> {args.output}: {len(model.graph.node)} nodes, {len(data) / 1e6:.1f} MB, {precision}, "
            f"{seconds:.1f} s"
        )
    return 0


def _checked(args: argparse.Namespace) -> Precision:
    """The precision of a graph. Raises UsageError for options that a graph does not have."""
    from restort.errors import UsageError

    if args.output is None:
        raise UsageError("say where to write the ONNX file, with -o FILE.onnx")
    if args.shape is not None or args.compute_capability is not None:
        raise UsageError(
            "an ONNX file takes all sizes, on all machines; --shape and --compute-capability are for "
            "--format plan"
        )
    if args.precision == "bf16":
        raise UsageError("an ONNX file is written in fp32 or fp16; choose one with --precision")
    return "fp16" if args.precision == "fp16" else "fp32"
