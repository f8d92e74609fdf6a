"""`restort export`: write weights as an ONNX file, or as an AOT package (restort.cli.export_aot)."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from restort.cli import choice, export_aot, options
from restort.cli.engine_options import names

if TYPE_CHECKING:
    from restort.export.graph import Precision


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers,
        "export",
        run,
        "write a model as an ONNX file, or as an AOT package of RestoRT's own kernels",
    )
    options.add_model(parser, required=True)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the file to write, .onnx or .rtaot (default for an AOT package: in the cache folder, for builds)",
    )
    parser.add_argument(
        "--format", choices=("onnx", "aot"), default="onnx", help="what to write (default: onnx)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="of weights and arithmetic (default: fp32, of an AOT package fp16; bf16 only for AOT packages)",
    )
    parser.add_argument(
        "--operators",
        metavar="LIST",
        type=names,
        default=(),
        help="operators to write as one node each, whose body is a function: lfe,gmsa (ELAN) or mdta,gdfn (Restormer)",
    )
    export_aot.add(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.errors import UsageError
    from restort.utils.files import check_free, write_bytes

    if args.format == "aot":
        return export_aot.run(args)
    precision = _checked(args)
    if args.output.suffix.lower() != ".onnx":
        raise UsageError(f"the name of an ONNX file must end in .onnx, not {args.output.name!r}")
    check_free(args.output, args.overwrite)
    start = time.perf_counter()
    weights, entry = choice.choose(args)
    from restort.export.emit import emit

    model = emit(weights, precision, operators=args.operators)
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
            "functions": [function.name for function in model.functions],
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
    """The precision of the graph. Raises UsageError for options of AOT packages."""
    from restort.errors import UsageError

    if args.output is None:
        raise UsageError("no file to write; name it with -o FILE.onnx")
    if args.shape is not None or args.compute_capability is not None:
        raise UsageError(
            "--shape and --compute-capability are only for --format aot: an ONNX file takes all sizes, on all machines"
        )
    if args.precision == "bf16":
        raise UsageError("an ONNX file is written in fp32 or fp16, not bf16; choose one with --precision")
    return "fp16" if args.precision == "fp16" else "fp32"
