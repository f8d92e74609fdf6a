"""`restort export`: write weights as an ONNX file, also quantised, or as an AOT package (restort.cli.export_aot)."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from restort.cli import choice, export_aot, export_triton, options
from restort.cli.engine_options import names

if TYPE_CHECKING:
    import onnx

    from restort.export.graph import Precision
    from restort.export.qdq import QuantType
    from restort.weights.checkpoint import Weights

QUANTIZED = ("int8", "fp8")
FLOAT16 = 10
"""The number of the type in ONNX."""


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers,
        "export",
        run,
        "write a model as an ONNX file, also quantized to INT8 or FP8, or as an AOT package of RestoRT's own kernels",
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
        choices=("fp32", "fp16", "bf16", "int8", "fp8"),
        help="of weights and arithmetic (default: fp32, of an AOT package fp16; bf16 only for AOT packages); int8 and "
        "fp8 quantize the 1x1 convolutions of an ONNX file, by QuantizeLinear and DequantizeLinear",
    )
    group = parser.add_argument_group("quantization, for --precision int8 and fp8")
    group.add_argument(
        "--calibration",
        metavar="FILE|FOLDER",
        type=Path,
        nargs="+",
        help="clean pictures to measure the range of every layer on, at most 32 of them (default: synthetic ones, or "
        "the ranges that the weights were trained with)",
    )
    group.add_argument(
        "--float-precision",
        choices=("fp32", "fp16"),
        help="of everything else in the graph (default: fp32; fp16 for TensorRT 10 and newer)",
    )
    group.add_argument(
        "--opset",
        type=int,
        choices=(17, 20),
        help="of ONNX (default: 20; 17 for TensorRT 8.6, with int8 and fp32 only)",
    )
    parser.add_argument(
        "--operators",
        metavar="LIST",
        type=names,
        default=(),
        help="operators to write as one node each, whose body is a function: lfe,gmsa (ELAN) or mdta,gdfn (Restormer)",
    )
    export_aot.add(parser)
    export_triton.add(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.errors import UsageError
    from restort.utils.files import check_free, write_bytes

    _check_quantization(args)
    export_triton.check(args)
    if args.triton is not None:
        return _serve(args)
    if args.format == "aot":
        return export_aot.run(args)
    _check(args)
    precision = args.precision or "fp32"
    if args.output.suffix.lower() != ".onnx":
        raise UsageError(f"the name of an ONNX file must end in .onnx, not {args.output.name!r}")
    check_free(args.output, args.overwrite)
    start = time.perf_counter()
    weights, entry = choice.choose(args)
    model, about = _graph(args, weights, precision)
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
            **about,
            "nodes": len(model.graph.node),
            "functions": [function.name for function in model.functions],
            "bytes": len(data),
            "metadata": {item.key: item.value for item in model.metadata_props},
            "seconds": round(seconds, 3),
        }
        print(json.dumps(report, indent=2))
    if not args.quiet:
        choice.notify(
            f"{name} -> {args.output}: {len(model.graph.node)} nodes, {len(data) / 1e6:.1f} MB, {precision}, "
            f"{seconds:.1f} s"
        )
    return 0


def _serve(args: argparse.Namespace) -> int:
    """Write a repository for a server instead of a file."""
    weights, entry = choice.choose(args)
    name = entry.name if entry is not None else weights.path.stem
    graph, dtype = None, "FP32"  # ports of an engine
    if args.engine is None:
        _check_precision(args)
        model, _ = _graph(args, weights, args.precision or "fp32")
        graph = model.SerializeToString()
        dtype = "FP16" if model.graph.input[0].type.tensor_type.elem_type == FLOAT16 else "FP32"
    export_triton.write(args, weights, name, graph, dtype)
    return 0


def _graph(
    args: argparse.Namespace, weights: Weights, precision: str
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph, and how it was quantised."""
    from restort.export.emit import emit

    if precision not in QUANTIZED:
        return emit(weights, cast("Precision", precision), operators=args.operators), {}
    from restort.profiling.calibration import calibrated
    from restort.profiling.samples import files

    pictures = files(args.calibration or ())
    found = calibrated(weights, cast("QuantType", precision), pictures)
    layers, names = len(found.quantization.ranges), found.pictures
    rest: Precision = args.float_precision or "fp32"
    about = {
        "float_precision": rest,
        "quantized_layers": layers,
        "calibration": names or "the ranges of the training",
    }
    if not args.quiet:
        on = f"calibrated on {len(names)} pictures" if names else "with the ranges of the training"
        choice.notify(f"{layers} layers quantized to {precision}, {on}; the rest is {rest}")
        if names and not pictures:
            choice.notify(
                "the pictures are synthetic; photographs such as yours give better ranges: --calibration FOLDER"
            )
    return emit(found.weights, rest, opset=args.opset, quantization=found.quantization), about


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError where no file is named, and for options of AOT packages."""
    from restort.errors import UsageError

    if args.output is None:
        raise UsageError("no file to write; name it with -o FILE.onnx")
    if args.shape is not None or args.compute_capability is not None:
        raise UsageError(
            "--shape and --compute-capability are only for --format aot: an ONNX file takes all sizes, on all machines"
        )
    _check_precision(args)


def _check_precision(args: argparse.Namespace) -> None:
    from restort.errors import UsageError

    if args.precision == "bf16":
        raise UsageError("an ONNX file is written in fp32 or fp16, not bf16; choose one with --precision")


def _check_quantization(args: argparse.Namespace) -> None:
    """Raise UsageError for options of quantisation where nothing is quantised, and for a type that the opset lacks."""
    from restort.errors import UsageError

    for option in ("calibration", "float_precision", "opset"):
        if getattr(args, option) is not None and args.precision not in QUANTIZED:
            raise UsageError(f"--{option.replace('_', '-')} is only for --precision int8 and fp8")
    if args.operators and args.precision in QUANTIZED:
        raise UsageError(f"--operators is only for fp32 and fp16, not {args.precision}; leave it out")
    if args.opset == 17 and (args.precision == "fp8" or args.float_precision == "fp16"):
        raise UsageError("opset 17 has neither FP8 nor INT8 beside fp16; leave --opset out")
