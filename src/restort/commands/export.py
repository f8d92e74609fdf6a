"""`restort export`: weights to an ONNX file."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from restort.commands import choice, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "export", run, "writes a model as an ONNX file")
    options.add_model(parser, required=True)
    parser.add_argument(
        "-o", "--output", metavar="FILE.onnx", type=Path, required=True, help="the file to write"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="of weights and arithmetic (default: fp32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.errors import UsageError
    from restort.imaging.files import check_free, write_bytes

    if args.output.suffix.lower() != ".onnx":
        raise UsageError(f"{args.output} is no name of an ONNX file; let it end in .onnx")
    check_free(args.output, args.overwrite)
    start = time.perf_counter()
    weights, entry = choice.choose(args)
    from restort.export.emit import emit

    model = emit(weights, args.precision)
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
            "precision": args.precision,
            "nodes": len(model.graph.node),
            "bytes": len(data),
            "metadata": {item.key: item.value for item in model.metadata_props},
            "seconds": round(seconds, 3),
        }
        print(json.dumps(report, indent=2))
    if not args.quiet:
        choice.say(
            f"{name} -> {args.output}: {len(model.graph.node)} nodes, {len(data) / 1e6:.1f} MB, {args.precision}, "
            f"{seconds:.1f} s"
        )
    return 0
