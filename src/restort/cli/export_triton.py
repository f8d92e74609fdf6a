"""`restort export --triton DIR`: a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.cli import choice, options
from restort.errors import UsageError

if TYPE_CHECKING:
    from restort.models.spec import Spec
    from restort.weights.checkpoint import Weights

RUNGS = (1, 2, 4, 8, 16)
SIZE = (256, 256)


def add(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("NVIDIA Triton Inference Server")
    group.add_argument(
        "--triton",
        metavar="DIR",
        type=Path,
        help="write a model repository there: an ONNX file and its config.pbtxt",
    )
    group.add_argument(
        "--engine", metavar="FILE", type=Path, help="serve this engine of `restort build` instead"
    )
    group.add_argument(
        "--size",
        metavar="HxW",
        type=size,
        help="of the input, to which clients pad their pictures (default: 256x256, or that of the engine)",
    )
    group.add_argument(
        "--batches",
        metavar="LIST",
        type=rungs,
        help="sizes of batches (default: 1,2,4,8,16, as far as the engine has them)",
    )


def size(text: str) -> tuple[int, int]:
    """Parse HxW."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 256x256")
    return int(height), int(width)


def rungs(text: str) -> tuple[int, ...]:
    """Parse a list of batch sizes; return it sorted."""
    return tuple(sorted({options.positive(part) for part in text.split(",")}))


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that need --triton, and for those that do not go with it."""
    if args.triton is None:
        for option in ("engine", "size", "batches"):
            if getattr(args, option) is not None:
                raise UsageError(f"--{option} is only for --triton DIR")
        return
    if args.output is not None:
        raise UsageError("--triton names the folder to write; leave out -o")
    if args.format != "onnx":
        raise UsageError(
            "--triton serves an ONNX file or an --engine, not an AOT package; leave out --format aot"
        )
    if args.shape is not None or args.compute_capability is not None:
        raise UsageError("--triton takes --size and --batches; leave out --shape and --compute-capability")
    if args.operators:
        raise UsageError("--operators is for files to look at; leave it out, or --triton")
    if args.engine is not None and args.precision is not None:
        raise UsageError("an engine has its own precision; leave out --precision, or --engine")


def write(
    args: argparse.Namespace, weights: Weights, name: str, graph: bytes | None, dtype: str
) -> dict[str, Any]:
    """Write the repository and report it.

    graph   the ONNX file; None where --engine is served
    dtype   of its input and output, 'FP32' or 'FP16'
    """
    from restort.export.inference_server import FILES, ServedModel, repository_name
    from restort.utils.files import check_free, read_bytes, write_bytes

    spec = weights.spec
    wanted, batches = args.size or SIZE, args.batches or RUNGS
    if graph is None:
        wanted, batches = _of_engine(args, weights)
    _check_size(wanted, spec)
    backend = "tensorrt" if graph is None else "onnxruntime"
    channels = (spec.in_channels, spec.out_channels)
    served = ServedModel(repository_name(name), backend, dtype, channels, wanted, spec.scale, batches)  # type: ignore[arg-type]
    folder = args.triton / served.name
    files = {
        folder / "1" / FILES[backend]: graph if graph is not None else read_bytes(args.engine),
        folder / "config.pbtxt": served.config().encode(),
    }
    for path in files:
        check_free(path, args.overwrite)
    for path, data in files.items():
        write_bytes(path, data, overwrite=args.overwrite)
    report = {
        "command": "export",
        "status": 0,
        "model": name,
        "sha256": weights.digest,
        "target": str(folder),
        "backend": backend,
        "size": list(wanted),
        "batches": list(batches),
        "dtype": dtype,
    }
    if args.json:
        print(json.dumps(report, indent=2))
    if not args.quiet:
        sizes = f"{wanted[0]}x{wanted[1]}, batches {', '.join(map(str, batches))}"
        choice.notify(
            f"{name} -> {folder}: {backend}, {sizes}; `tritonserver --model-repository={args.triton}`"
        )
    return report


def _of_engine(args: argparse.Namespace, weights: Weights) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the size and the batches of the engine, or those asked for where it has them."""
    from restort.backends.tensorrt import sidecar

    about = sidecar.read(args.engine)
    wrong = sidecar.problem(args.engine)
    if wrong is not None:
        raise UsageError(f"{args.engine} is damaged: {wrong}; build it again")
    model, profile = about.get("model") or {}, about["profile"]
    if model.get("weights_sha256") != weights.digest:
        raise UsageError(f"{args.engine} was built from other weights, {model.get('name')}; name those")
    least, best, most = (tuple(profile[name]) for name in ("min", "opt", "max"))
    wanted = args.size or best[1:]
    if not all(low <= edge <= high for low, edge, high in zip(least[1:], wanted, most[1:])):
        raise UsageError(f"{args.engine} takes {_text(least[1:])} to {_text(most[1:])}, not {_text(wanted)}")
    fitting = tuple(rung for rung in args.batches or (*RUNGS, most[0]) if least[0] <= rung <= most[0])
    if args.batches is not None and fitting != args.batches:
        raise UsageError(
            f"{args.engine} takes batches of {least[0]} to {most[0]}; name others with --batches"
        )
    return wanted, tuple(sorted(set(fitting)))


def _check_size(wanted: tuple[int, int], spec: Spec) -> None:
    multiple = spec.size_multiple
    if any(edge % multiple for edge in wanted):
        raise UsageError(
            f"--size {_text(wanted)} is not made of multiples of {multiple}, which the network needs"
        )


def _text(edges: tuple[int, ...]) -> str:
    return "x".join(map(str, edges))
