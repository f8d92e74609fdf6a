"""Do the plugin's newer ways work in TensorRT 8.6 on a GPU? Into results/speed/tensorrt_plugin.json.

    . D/env.sh && PYTHONPATH=src:benchmarks:$PYTHONPATH $TRT_PYTHON benchmarks/plugin_checks.py [--lean FOLDER]
                  [--lean8 FOLDER] [--only WORDS] [--output FILE] [--limit 250]

D, and the packages of --workloads in RESTORT_CACHE, are made as for bench_tensorrt.py. Each part is a process of its
own, and one that fails is recorded under "failures":

single      the plugin is loaded by IPluginRegistry::loadLibrary; an engine of one size, ELAN-light x4 at 192x320
sizes       the Restormer at 720x1280, 368x552 and 256x256 in one engine: whether the bits are those of engines of one
            size, the times of both, GPU memory, and the sentence for a fourth size
operators   ELAN-light x4 from a graph of operators with functions (restort export --operators), beside the usual one
compatible  ELAN-light x4, its own kernels, --version-compatible. --lean8 FOLDER holds libnvinfer_lean.so.8 (the wheel
            tensorrt-lean 8.6.0, unpacked), which the builder of 8.6 puts into the engine
lean        that engine in the lean runtime of TensorRT 10, whose wheels, unpacked, are FOLDER of --lean
            (tensorrt-lean-cu12-libs and -bindings 10.16.1.11 for CPython 3.10); compared with 8.6, and timed
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Record, about, median, repeated, rounded, write_json
from workloads import WORKLOADS, weights_of

NETWORK, HEIGHT, WIDTH = "elan-light-x4", 192, 320
SIZES = tuple((height, width) for network, height, width in WORKLOADS if network == "restormer")
PARTS = ("single", "sizes", "operators", "compatible", "lean")


def picture(height: int, width: int) -> Any:
    return np.random.default_rng(0).random((1, 3, height, width), np.float32)


def runner_of(network: str, profile: Any, **options: Any) -> Any:
    from restort.backends.tensorrt.runner import TensorrtRunner

    runner = TensorrtRunner(weights_of(network), "fp16", profile=profile, options=options)
    runner.notify = runner.warn = lambda line: print(f"    {line}", file=sys.stderr, flush=True)
    return runner


def measured(runner: Any, x: Any) -> Record:
    """The time of one call, and what the engine's sidecar says."""
    y = runner(x)
    assert np.isfinite(y).all()
    engine = runner.engine_for(x)
    times = repeated(runner.timer(x), 1.0)
    contexts = engine._contexts.values()
    return {
        "device": runner.device,
        "library": runner.flavour.title,
        "median_ms": rounded(median(times)),
        "calls": len(times),
        "peak_mib": round(engine.peak_bytes() / 2**20, 1),
        "cuda_graph": all(context.graph is not None for context in contexts if context.shape == x.shape),
    }


def built(runner: Any) -> list[Record]:
    """Of each engine that the runner's precision has in the cache: seconds, bytes and flags."""
    entries = runner._providers["fp16"].cache.entries()
    model = runner._providers["fp16"].model
    return [
        {name: stored.about.get(name) for name in ("seconds", "bytes", "profile", "flags", "version", "aot")}
        for stored in entries
        if stored.path.name.startswith(model)
    ]


def single(args: argparse.Namespace) -> Record:
    from restort.backends.tensorrt import plugin
    from restort.backends.tensorrt.options import Profile

    runner = runner_of(NETWORK, Profile.fixed(1, HEIGHT, WIDTH), kernels="fused")
    found = measured(runner, picture(HEIGHT, WIDTH))
    found["registered"] = plugin.is_registered(runner.flavour)
    runner.close()
    return found


def sizes(args: argparse.Namespace) -> Record:
    from restort.backends.tensorrt.options import Profile
    from restort.errors import RestortError

    alone, results = {}, {}
    for height, width in SIZES:
        runner = runner_of("restormer", Profile.fixed(1, height, width), kernels="fused")
        x = picture(height, width)
        results[height, width] = runner(x)
        alone[f"{height}x{width}"] = measured(runner, x)
        runner.close()
    first, *others = [(1, height, width) for height, width in SIZES]
    runner = runner_of("restormer", Profile(first, first, first, tuple(others)), kernels="fused")
    together = {}
    for height, width in SIZES:
        x = picture(height, width)
        together[f"{height}x{width}"] = measured(runner, x) | {
            "equal_bits": bool(np.array_equal(runner(x), results[height, width]))
        }
    again = [
        bool(np.array_equal(runner(picture(*size)), results[size])) for size in SIZES
    ]  # after the others
    try:
        runner(picture(128, 128))
        refused = "no error"
    except RestortError as error:
        refused = str(error)
    found = {
        "alone": alone,
        "together": together,
        "again": again,
        "refused": refused,
        "engines": built(runner),
    }
    runner.close()
    return found


def operators(args: argparse.Namespace) -> Record:
    """Built by builder.build, as `restort build --onnx` does; run by Engine."""
    from restort.backends.tensorrt.builder import build
    from restort.backends.tensorrt.engine import Engine
    from restort.backends.tensorrt.library import find
    from restort.backends.tensorrt.options import BuildOptions, Profile
    from restort.export.emit import emit

    flavour, x = find("tensorrt"), picture(HEIGHT, WIDTH)
    found: Record = {}
    results = []
    for name, kinds in (("plain", ()), ("operators", ("lfe", "gmsa"))):
        graph = emit(weights_of(NETWORK), "fp16", opset=17, operators=kinds)
        made = build(flavour, graph, BuildOptions(Profile.fixed(1, HEIGHT, WIDTH), "fp16"))
        engine = Engine(flavour, made.plan)
        results.append(engine(x))
        times = repeated(engine.timer(x), 1.0)
        found[name] = {
            "nodes": len(graph.graph.node),
            "seconds": made.report["seconds"],
            "bytes": len(made.plan),
            "layers": made.report["layers"],
            "median_ms": rounded(median(times)),
        }
        engine.close()
    return found | {"relative_l2": error_of(results[1], results[0])}


def compatible(args: argparse.Namespace) -> Record:
    from restort.backends.tensorrt.options import Profile

    profile, x = Profile.fixed(1, HEIGHT, WIDTH), picture(HEIGHT, WIDTH)
    usual = runner_of(NETWORK, profile)
    found = {"usual": measured(usual, x)}
    reference = usual(x)
    usual.close()
    runner = runner_of(NETWORK, profile, version_compatible=True)
    y = runner(x)
    np.save(kept(args), y)
    found |= {
        "compatible": measured(runner, x),
        "relative_l2": error_of(y, reference),
        "engines": built(runner),
    }
    runner.close()
    return found


def lean(args: argparse.Namespace) -> Record:
    """In a process whose only TensorRT is the lean runtime."""
    runner = runner_of(NETWORK, None)
    x = picture(HEIGHT, WIDTH)
    found = measured(runner, x)
    found["relative_l2"] = error_of(runner(x), np.load(kept(args)))
    runner.close()
    return found


def kept(args: argparse.Namespace) -> Path:
    """The result of part `compatible`, for part `lean`."""
    return Path(args.output).with_suffix(".npy")


def error_of(y: Any, reference: Any) -> float:
    return float(
        np.linalg.norm((y - reference).astype(np.float64)) / np.linalg.norm(reference.astype(np.float64))
    )


def part(name: str, args: argparse.Namespace) -> int:
    """In a process of its own: print the record of a part, or its error, as the last line."""
    if name == "lean":
        sys.modules["tensorrt"] = None  # type: ignore[assignment]  # as if it were not installed
        sys.path.insert(0, args.lean)
    try:
        found = globals()[name](args)
    except Exception as error:
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:1000]}
    print(json.dumps(found))
    return 0


def in_a_process(name: str, args: argparse.Namespace) -> Record:
    command = [sys.executable, __file__, "--part", name, "--output", str(args.output), "--lean", args.lean]
    environment = dict(os.environ)
    if args.lean8:
        paths = [args.lean8, environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=args.limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {args.limit} s"}
    try:
        found: Record = json.loads(done.stdout.splitlines()[-1])
        return found
    except (IndexError, ValueError):
        return {"error": f"the process ended with {done.returncode} and no result"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "speed" / "tensorrt_plugin.json")
    parser.add_argument("--lean", default="", help="folder of the lean runtime of TensorRT 10")
    parser.add_argument("--lean8", default="", help="folder of libnvinfer_lean.so.8")
    parser.add_argument("--only", help="parts, with commas between them")
    parser.add_argument("--limit", type=float, default=250, help="seconds of a part")
    parser.add_argument("--list", action="store_true", help="print the parts")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return part(args.part, args)
    wanted = args.only.split(",") if args.only else [name for name in PARTS if args.lean or name != "lean"]
    if args.list:
        print("\n".join(wanted))
        return 0
    held: Record = {"records": [], "failures": []}
    if args.output.is_file():
        held = json.loads(args.output.read_text())
    for name in wanted:
        print(f"{name} ...", flush=True)
        found = {"part": name, **in_a_process(name, args), **about()}
        for kind in held:
            held[kind] = [record for record in held[kind] if record["part"] != name]
        held["failures" if "error" in found else "records"].append(found)
        write_json(args.output, held)
        print(f"{name}: {found.get('error') or 'done'}", flush=True)
    return 1 if held["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
