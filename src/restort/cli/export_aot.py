"""`restort export --format aot`: compile RestoRT's own kernels for one size and one kind of GPU, on any machine."""

from __future__ import annotations

import argparse
import json
import time

from restort.cli import choice
from restort.cli.engine_options import capabilities, shapes


def add(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "AOT packages", "--format aot: for `restort build --kernels fused`; no GPU is needed"
    )
    group.add_argument("--shape", metavar="BxHxW", type=shapes, help="size of the input, such as 1x720x1280")
    group.add_argument(
        "--compute-capability",
        metavar="C",
        type=capabilities,
        help="of the GPU that will run it, such as 9.0 (default: the GPU of this machine)",
    )


def run(args: argparse.Namespace) -> int:
    from restort.backends.fused.aot_cache import PRECISIONS, AotCache, AotRequest, compile_request, open_aot
    from restort.errors import UsageError
    from restort.utils.files import check_free, write_bytes

    if args.operators:
        raise UsageError("--operators is only for ONNX files; leave it out, or --format aot")
    precision = args.precision or "fp16"
    if precision not in PRECISIONS:
        raise UsageError(
            f"AOT packages do not support {precision}; choose --precision {' or '.join(PRECISIONS)}"
        )
    if args.shape is None or not args.shape.is_fixed:
        raise UsageError(
            "an AOT package is for one size; give it with --shape BxHxW, such as --shape 1x720x1280"
        )
    if args.output is not None:
        if args.output.suffix.lower() != ".rtaot":
            raise UsageError(f"the name of an AOT package must end in .rtaot, not {args.output.name!r}")
        check_free(args.output, args.overwrite)
    capability = _capability(args)
    start = time.perf_counter()
    weights, entry = choice.choose(args)
    _check_size(args.shape.opt, weights.spec.size_multiple)
    request = AotRequest(weights, precision, args.shape.opt, capability)
    if args.output is None:
        target = AotCache().provide(request, choice.ignore_message if args.quiet else choice.notify)
    else:
        target = args.output
        write_bytes(target, compile_request(request), overwrite=args.overwrite)
    package = open_aot(target)
    seconds = time.perf_counter() - start
    name = entry.name if entry is not None else weights.path.stem
    if args.json:
        report = {
            "command": "export",
            "status": 0,
            "format": "aot",
            "model": name,
            "sha256": weights.digest,
            "target": str(target),
            "precision": precision,
            "shape": list(request.shape),
            "compute_capability": f"{capability / 10}",
            "kernels": len(package.kernels),
            "launches": len(package.launches),
            "memory": package.memory,
            "bytes": target.stat().st_size,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(report, indent=2))
    if not args.quiet:
        choice.notify(
            f"{name} -> {target}: {len(package.kernels)} kernels, {target.stat().st_size / 1e6:.1f} MB, {precision}, "
            f"{request.size}, compute capability {capability / 10}, {package.memory / 2**20:.0f} MiB on the GPU, "
            f"{seconds:.1f} s"
        )
    return 0


def _capability(args: argparse.Namespace) -> int:
    """The compute capability to compile for, 90 for 9.0."""
    from restort.errors import UsageError
    from restort.utils.gpu import find_gpu

    asked = args.compute_capability
    if asked is None:
        gpu = find_gpu()
        if gpu is None:
            raise UsageError(
                "no NVIDIA GPU found to compile for; name one with --compute-capability, such as 9.0"
            )
        asked = (gpu.compute_capability,)
    if len(asked) != 1:
        raise UsageError(
            f"an AOT package is for one compute capability, not {', '.join(asked)}; make one for each"
        )
    return round(10 * float(asked[0]))


def _check_size(shape: tuple[int, int, int], multiple: int) -> None:
    from restort.errors import UsageError

    if any(side % multiple for side in shape[1:]):
        raise UsageError(
            f"--shape {'x'.join(map(str, shape))} does not fit the network: height and width must be multiples of "
            f"{multiple}"
        )
