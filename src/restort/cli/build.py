"""`restort build`: build a TensorRT engine from weights or an ONNX graph."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.cli import choice, options
from restort.cli.engine_options import (
    Display,
    add_kernels,
    budget,
    capabilities,
    check_kernels,
    combined,
    names,
    shapes,
)

if TYPE_CHECKING:
    import onnx

    from restort.backends.tensorrt.library import Flavour
    from restort.backends.tensorrt.options import BuildOptions, Built, Profile
    from restort.weights.checkpoint import Weights

FLAVOURS = ("auto", "tensorrt", "rtx")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "mixed")


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers,
        "build",
        run,
        "build a TensorRT engine, for the GPU of this machine or, with TensorRT-RTX, for others",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME", help="a model of `restort models`")
    source.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        help="a file of weights (.safetensors, .pth) of either network",
    )
    source.add_argument("--onnx", metavar="FILE", type=Path, help="a graph with one picture in and one out")
    parser.add_argument(
        "-o",
        "--output",
        metavar="ENGINE",
        type=Path,
        help="the file to write, described by ENGINE.json beside it (default: MODEL-PRECISION.FLAVOUR.engine in this "
        "folder)",
    )
    parser.add_argument("--flavour", choices=FLAVOURS, default="auto", help="which library (default: auto)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="numbers to compute in (default: fp16; with --onnx, those of the graph)",
    )
    parser.add_argument(
        "--shape",
        metavar="MIN,OPT,MAX",
        type=shapes,
        action="append",
        help="sizes as BxHxW, such as 1x64x64,1x512x512,1x1280x1280; one for a fixed size; with --kernels fused again "
        "for each further size",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="LIST",
        type=capabilities,
        default=(),
        help="GPUs to build for, such as 8.6,8.9,12.0; TensorRT-RTX only, which needs none of them here (default: the "
        "GPU of this machine)",
    )
    add_kernels(parser)
    parser.add_argument(
        "--level", metavar="N", type=options.not_negative, help="effort of the search, 0 to 5 (default: 3)"
    )
    parser.add_argument(
        "--budget",
        metavar="ERROR",
        type=budget,
        help="with mixed: the largest relative L2 error, such as 0.001",
    )
    parser.add_argument(
        "--keep-fp32",
        metavar="LIST",
        type=names,
        help="with mixed: the sections in float32 (default: a search for the fewest)",
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="also for newer versions of TensorRT, and for its lean runtime, without a builder (pip install "
        "tensorrt-lean)",
    )
    parser.add_argument("--offline", action="store_true", help="never download")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.backends.tensorrt import sidecar
    from restort.backends.tensorrt.builder import build
    from restort.backends.tensorrt.library import find
    from restort.backends.tensorrt.options import BuildOptions
    from restort.backends.tensorrt.provider import check_build
    from restort.utils.files import check_free

    args.shape = combined(args.shape)
    check_kernels(args)
    flavour = find(args.flavour)
    graph, weights = _source(args)
    precision = args.precision or ("fp16" if graph is None else _own_precision(graph))
    wanted = BuildOptions(
        profile=args.shape or _default_profile(weights, graph),
        precision=precision,
        compute_capabilities=args.compute_capability,
        level=args.level,
        kernels=args.kernels,
        version_compatible=args.version_compatible,
    )
    check_build(flavour, wanted)
    keep = _float32_sections(args, weights, precision)
    stem = args.onnx.stem if weights is None else _name(args, weights)
    fused = "-fused" * (args.kernels == "fused")
    target = args.output or Path(f"{stem}-{precision}{fused}.{flavour.name}.engine")
    for path in (target, sidecar.path_of(target)):
        check_free(path, args.overwrite)
    if not args.quiet:
        choice.notify(_announcement(stem, flavour, wanted))
    with Display(quiet=args.quiet) as progress:
        wanted = replace(wanted, progress=progress)
        if weights is not None:
            built = _through_the_cache(args, weights, flavour, wanted, keep)
        else:
            assert graph is not None
            built = build(flavour, graph, wanted)
    sidecar.write(target, built)
    _report(args, target, stem, built)
    if weights is not None and precision == "mixed" and not (args.keep_fp32 or args.compute_capability):
        return _checked(args, weights, wanted)
    return 0


def _checked(args: argparse.Namespace, weights: Weights, wanted: BuildOptions) -> int:
    """Compare the mixed engine with the reference network; return 1 where it misses its error budget."""
    from restort.backends.tensorrt.mixed_precision import choice as chosen
    from restort.profiling.engine_check import of_engine
    from restort.profiling.sensitivity import Budget

    budget = Budget(**(chosen(weights) or {}).get("budget", {}))
    options = _key_options(wanted)
    fits, outcome = of_engine(weights, args.flavour, wanted.profile, options, budget)
    if not fits or not args.quiet:
        choice.notify(outcome)
    return 0 if fits else 1


def _source(args: argparse.Namespace) -> tuple[onnx.ModelProto | None, Weights | None]:
    """Load the graph of --onnx, or the weights of --model or --weights."""
    if args.onnx is None:
        return None, choice.choose(args)[0]
    import onnx

    from restort.errors import RestortError, UsageError
    from restort.utils.files import read_bytes

    if args.keep_fp32 is not None or args.budget is not None:
        raise UsageError(
            "--keep-fp32 and --budget need the network; give --model or --weights instead of --onnx"
        )
    path = args.onnx.expanduser()
    data = read_bytes(path)
    try:
        model = onnx.load_from_string(data)
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
            onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # protobuf's own errors differ between its implementations
        reason = " ".join(str(error).split())[:120]
        raise RestortError(f"cannot read {path} as ONNX: {reason}") from None
    if not model.graph.node:
        raise RestortError(f"{path} is not an ONNX file: it holds no graph")
    return model, None


def _own_precision(graph: onnx.ModelProto) -> str:
    """The precision of a graph, by its convolutions."""
    from restort.export.typed import convolutions

    kinds = set(convolutions(graph).values())
    if kinds == {"float16"}:
        return "fp16"
    if kinds == {"bfloat16"}:
        return "bf16"
    return "mixed" if "float16" in kinds else "fp32"


def _default_profile(weights: Weights | None, graph: onnx.ModelProto | None) -> Profile:
    """The default of --shape: the sizes of `--backend tensorrt`, or the fixed ones of the graph."""
    from restort.backends.tensorrt.network import input_shape
    from restort.backends.tensorrt.options import Profile
    from restort.backends.tensorrt.provider import LARGEST, USUAL
    from restort.utils.integers import round_up

    multiple, own = 1, (1, -1, -1)
    if weights is not None:
        multiple = weights.spec.size_multiple
    if graph is not None:
        n, _, h, w = input_shape(graph)
        own = n, h, w
        about = {entry.key: entry.value for entry in graph.metadata_props}
        multiple = int(about.get("restort.size_multiple", 1))

    def size(height: int, width: int) -> tuple[int, int, int]:
        rounded = (1, *(round_up(side, multiple) for side in (height, width)))
        b, h, w = (fixed if fixed > 0 else free for fixed, free in zip(own, rounded, strict=True))
        return b, h, w

    return Profile(size(multiple, multiple), size(*USUAL), size(*LARGEST))


def _float32_sections(args: argparse.Namespace, weights: Weights | None, precision: str) -> tuple[str, ...]:
    """The sections of a mixed engine in float32: given, chosen before, or searched for within the budget."""
    from restort.errors import UsageError

    if precision != "mixed":
        if args.keep_fp32 is not None or args.budget is not None:
            raise UsageError("--keep-fp32 and --budget are only for --precision mixed")
        return ()
    if weights is None:
        return ()
    if args.keep_fp32 is not None:
        return _known(args.keep_fp32, weights)
    from restort.backends.tensorrt import mixed_precision

    before = mixed_precision.choice(weights)
    if before is not None and args.budget in (None, before.get("budget", {}).get("relative_l2")):
        return mixed_precision.kept_sections(weights)
    from restort.profiling.pairs import pairs
    from restort.profiling.sensitivity import Budget, Search
    from restort.profiling.sensitivity_files import keep

    notify = choice.ignore_message if args.quiet else choice.notify
    limit = Budget() if args.budget is None else Budget(relative_l2=args.budget)
    found = Search(weights, pairs(weights)).choose(limit, notify)
    files = keep(weights, found)
    notify(f"{found.summary()}; the table: {files[1]}")
    return found.keep_fp32


def _known(wanted: tuple[str, ...], weights: Weights) -> tuple[str, ...]:
    """The sections of --keep-fp32, where * in a name matches several: 'encoder_level1.*'."""
    from fnmatch import fnmatchcase

    from restort.errors import UsageError
    from restort.export.form import sections

    every = sections(weights.spec)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(f"unknown section {pattern!r}; choose from {', '.join(every)}")
    return tuple(name for name in every if any(fnmatchcase(name, pattern) for pattern in wanted))


def _name(args: argparse.Namespace, weights: Weights) -> str:
    return str(args.model or weights.path.stem)


def _through_the_cache(
    args: argparse.Namespace, weights: Weights, flavour: Flavour, wanted: BuildOptions, keep: tuple[str, ...]
) -> Built:
    """Get the engine from the cache, where `--backend tensorrt` finds it, too; build it there if it is absent."""
    from restort.backends.tensorrt.options import Built
    from restort.backends.tensorrt.provider import EngineProvider

    provider = EngineProvider(
        weights,
        wanted.precision,
        flavour,
        targets=wanted.compute_capabilities,
        keep_fp32=keep,
        options=_key_options(wanted),
        packages=tuple(args.aot or ()),
        notify=choice.ignore_message if args.quiet else choice.notify,
        progress=wanted.progress,
    )
    stored = provider.obtain(wanted.profile)
    return Built(stored.path.read_bytes(), stored.about)


def _key_options(wanted: BuildOptions) -> dict[str, Any]:
    """The options that are part of an engine's key."""
    found: dict[str, Any] = {"kernels": wanted.kernels}
    if wanted.level is not None:
        found["level"] = wanted.level
    if wanted.version_compatible:
        found["version_compatible"] = True
    return found


def _announcement(stem: str, flavour: Flavour, wanted: BuildOptions) -> str:
    targets = (
        f" for compute capability {', '.join(wanted.compute_capabilities)}"
        if wanted.compute_capabilities
        else ""
    )
    return f"building {stem}, {wanted.precision}, {wanted.profile}, with {flavour.title}{targets}"


def _report(args: argparse.Namespace, target: Path, stem: str, built: Built) -> None:
    from restort.backends.tensorrt.inspector import unverified_note

    report = built.report
    if args.json:
        about = {"command": "build", "status": 0, "name": stem, "target": str(target)}
        print(json.dumps(about | report, indent=2))
    if not args.quiet:
        counts = [f"{n} {kind}" for kind, n in report["layers"].items() if kind != "source"]
        layers = "layers" if report["layers"].get("source") == "plugin" else "layers by type"
        choice.notify(
            f"{stem} -> {target}: {report['bytes'] / 1e6:.1f} MB, {report['precision']}, {report['seconds']:.1f} s; "
            f"{layers}: {', '.join(counts)}"
        )
        if note := unverified_note(report):
            choice.notify(note)
