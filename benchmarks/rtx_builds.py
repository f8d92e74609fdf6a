"""Builds engines with TensorRT-RTX, on a machine without a GPU, and records seconds, sizes and memory.

    python benchmarks/rtx_builds.py [--models NAME ...] [--precisions fp16 ...] [--targets 8.6 ...] [--output FILE]

Every shipped model, and Restormer and ELAN in their official sizes (random weights: the numbers do not matter here),
in fp32, tf32, fp16, bf16 and mixed, for compute capability 8.0, 8.6, 8.9 and 12.0, with batch, height and width all
dynamic. Each build is a process of its own, so that its peak memory is its own. Built is not run: these engines need
a GPU of those capabilities. Takes about ten minutes on two cores; results/speed/rtx_builds.json keeps what an earlier
call recorded for other models.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "results" / "speed" / "rtx_builds.json"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "mixed")
TARGETS = ("8.0", "8.6", "8.9", "12.0")
PROFILE = ((1, 64, 64), (1, 256, 256), (4, 1024, 1024))
RANDOM = ("restormer", "restormer-biasfree", "elan-light-x4", "elan-x4")
FP32_SHARE = (
    6  # a mixed engine here keeps every sixth section in float32: what is built, not what is accurate
)


def names() -> list[str]:
    from restort.weights.catalogue import entries

    return [entry.name for entry in entries() if entry.shipped] + [f"random-{name}" for name in RANDOM]


def weights_of(name: str) -> Any:
    """Shipped weights, or well-conditioned random ones in an official size."""
    from restort.models.spec import ElanSpec, RestormerSpec, Spec
    from restort.weights.catalogue import find
    from restort.weights.checkpoint import Weights, load_weights
    from restort.weights.download import path_of

    if not name.startswith("random-"):
        return load_weights(path_of(find(name), offline=True, notice=print))
    from random_weights import random_state

    def restormer(norm: Any) -> RestormerSpec:
        return RestormerSpec(3, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, norm, False)

    specs: dict[str, Spec] = {
        "restormer": restormer("WithBias"),
        "restormer-biasfree": restormer("BiasFree"),
        "elan-light-x4": ElanSpec(4, 24, 60, 1, 3, (4, 8, 16), 255.0, 2),
        "elan-x4": ElanSpec(4, 36, 180, 0, 3, (4, 8, 16), 255.0, 2),
    }
    spec = specs[name.removeprefix("random-")]
    return Weights(random_state(spec), spec, {}, "0" * 64, Path(f"{name}.safetensors"))


def one(arguments: tuple[str, str, str]) -> dict[str, Any]:
    """One engine: what the sidecar says of it, with the peak memory of this process, or the error."""
    from restort.backends.tensorrt.build import BuildOptions, build
    from restort.backends.tensorrt.flavour import find
    from restort.backends.tensorrt.keys import Profile
    from restort.errors import RestortError
    from restort.export.form import sections
    from restort.export.typed import typed_graph

    name, precision, target = arguments
    found: dict[str, Any] = {"model": name, "precision": precision, "target": target}
    try:
        weights = weights_of(name)
        keep = sections(weights.spec)[::FP32_SHARE] if precision == "mixed" else ()
        options = BuildOptions(Profile(*PROFILE), precision, (target,))
        report = build(find("rtx"), typed_graph(weights, precision, keep_fp32=keep), options).report
    except RestortError as error:
        return found | {"error": str(error)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found | {
        "seconds": report["seconds"],
        "bytes": report["bytes"],
        "nodes": report["graph"]["nodes"],
        "layers": {kind: n for kind, n in report["layers"].items() if kind != "source"},
        "peak_memory_bytes": peak,
    }


def main() -> None:
    from restort.backends.tensorrt.flavour import find
    from restort.profiling.machine import provenance

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=names(), choices=names(), metavar="NAME")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    wanted = [(m, p, t) for m in args.models for p in args.precisions for t in args.targets]
    before = json.loads(args.output.read_text())["builds"] if args.output.exists() else []
    builds = [b for b in before if (b["model"], b["precision"], b["target"]) not in wanted]
    about = provenance()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for found in pool.imap(one, wanted):
            builds.append(found)
            text = found.get("error") or f"{found['seconds']:.1f} s, {found['bytes'] / 1e6:.1f} MB"
            print(f"{found['model']:24} {found['precision']:6} {found['target']:5} {text}", flush=True)
            record = {"library": find("rtx").title, "profile": PROFILE, **about, "builds": builds}
            args.output.write_text(json.dumps(record, indent=1) + "\n")
    failed = sum("error" in build for build in builds)
    print(
        f"{len(builds) - failed} engines built, {failed} failed; none was run: this takes a GPU they are for"
    )
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
