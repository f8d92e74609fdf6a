"""`--ahead`: the engine that a command would run, built now for machines to come."""

from __future__ import annotations

import argparse
import json
import os

from restort.commands import choice
from restort.commands.engine_options import capabilities


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ahead",
        metavar="LIST",
        type=capabilities,
        help="with --backend tensorrt: run nothing, only build the engine for later machines whose GPUs have these "
        "compute capabilities, such as 8.6,8.9 (TensorRT-RTX; the cache folder has to go there)",
    )


def run(args: argparse.Namespace, task: str | None) -> int:
    """Builds the engine of the command's model into the cache; the exit status."""
    from restort.backends.tensorrt.build import BuildOptions, check_options
    from restort.backends.tensorrt.check import KERNELS, asked_kernels
    from restort.backends.tensorrt.flavour import find
    from restort.backends.tensorrt.mixed import kept_sections
    from restort.backends.tensorrt.supply import Supply, profile_for
    from restort.errors import UsageError

    if args.backend != "tensorrt":
        raise UsageError("--ahead builds TensorRT engines; use it with --backend tensorrt")
    if asked_kernels() == "fused":
        raise UsageError(
            "engines of RestoRT's own kernels are built where their GPU is; leave --ahead out, or unset "
            f"{KERNELS} (a plan can be made ahead: `restort export --format plan`)"
        )
    flavour = find(os.environ.get("RESTORT_TENSORRT") or "rtx")
    precision = "fp16" if args.precision == "auto" else args.precision
    weights, _ = choice.choose(args, task)
    profile = profile_for(weights.spec, (1, weights.spec.size_multiple, weights.spec.size_multiple))
    check_options(flavour, BuildOptions(profile, precision, args.ahead))
    keep = kept_sections(weights) if precision == "mixed" else ()
    say = choice.silent if args.quiet else choice.say
    stored = Supply(weights, precision, flavour, args.ahead, keep, say=say).obtain(profile)
    if not stored.built:
        say(f"the engine is there already: {stored.path}")
    if args.json:
        report = {"command": args.name, "status": 0, "engine": str(stored.path), **stored.about}
        print(json.dumps(report, indent=2))
    return 0
