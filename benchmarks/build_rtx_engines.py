"""Which engines does TensorRT-RTX build on a computer without a GPU? Seconds, sizes and memory, into rtx_builds.json.

    python benchmarks/build_rtx_engines.py [--only WORDS] [--again WORDS] [--list] [--output FILE]

Every shipped model, and Restormer and ELAN in their official sizes (random weights: the numbers do not matter here),
in fp32, tf32, fp16, bf16 and mixed, for compute capability 8.0, 8.6, 8.9 and 12.0, with batch, height and width all
dynamic. Each build is a process of its own, so that its peak memory is its own. Built is not run: these engines need
a GPU of those capabilities. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import RESULTS, Record, Records, Worker, common_arguments, matching, run_cases, serve
from workloads import NETWORKS, weights_of

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "mixed")
TARGETS = ("8.0", "8.6", "8.9", "12.0")
PROFILE = ((1, 64, 64), (1, 256, 256), (4, 1024, 1024))
FP32_SHARE = (
    6  # a mixed engine here keeps every sixth section in float32: what is built, not what is accurate
)
LIMIT = 900.0


@dataclass(frozen=True)
class Case:
    model: str
    precision: str
    target: str

    @property
    def key(self) -> Record:
        return {name: getattr(self, name) for name in ("model", "precision", "target")}

    def __str__(self) -> str:
        return f"{self.model} {self.precision} {self.target}"


def cases() -> list[Case]:
    from restort.weights.catalogue import entries

    names = [entry.name for entry in entries() if entry.shipped] + [f"random-{name}" for name in NETWORKS]
    return [Case(m, p, t) for m in names for p in PRECISIONS for t in TARGETS]


def weights_named(name: str) -> Any:
    """Shipped weights, or random ones in an official size."""
    from restort.weights.catalogue import find
    from restort.weights.checkpoint import load_weights
    from restort.weights.download import path_of

    if name.startswith("random-"):
        return weights_of(name.removeprefix("random-"))
    return load_weights(path_of(find(name), offline=True, notice=print))


def build_one(question: Record) -> Record:
    """In the worker: what the sidecar says of the engine, with the peak memory of this process."""
    from restort.backends.tensorrt.builder import build
    from restort.backends.tensorrt.library import find
    from restort.backends.tensorrt.options import BuildOptions, Profile
    from restort.export.form import sections
    from restort.export.typed import typed_graph

    case = Case(**question)
    weights, flavour = weights_named(case.model), find("rtx")
    keep = sections(weights.spec)[::FP32_SHARE] if case.precision == "mixed" else ()
    options = BuildOptions(Profile(*PROFILE), case.precision, (case.target,))
    report = build(flavour, typed_graph(weights, case.precision, keep_fp32=keep), options).report
    return {
        "seconds": report["seconds"],
        "bytes": report["bytes"],
        "nodes": report["graph"]["nodes"],
        "layers": {kind: n for kind, n in report["layers"].items() if kind != "source"},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "library": flavour.title,
    }


def measure(case: Case, left: float) -> Record:
    worker = Worker(Path(__file__))
    try:
        return worker.ask(case.key, min(LIMIT, left))
    finally:
        worker.close()


def describe(record: Record) -> str:
    return f"{record['seconds']:.1f} s, {record['bytes'] / 1e6:.1f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, RESULTS / "speed" / "rtx_builds.json", seconds=7200)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(build_one)
    wanted = matching(cases(), args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    records = Records(args.output)
    records.extra["profile"] = PROFILE
    again = matching(wanted, args.again) if args.again else ()
    failed = run_cases(wanted, records, measure, describe, seconds=args.seconds, again=again)
    print(
        f"{len(records.records)} engines built, {failed} failed now; none was run: this takes a GPU they are for"
    )
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
