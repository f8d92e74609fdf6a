"""TensorRT 8.6 on an H100: build times, speed, layer profiles, into results/speed/tensorrt86.json.

    . D/env.sh && PYTHONPATH=src:benchmarks:$PYTHONPATH $TRT_PYTHON benchmarks/tensorrt86.py [--seconds 560]
                  [--only WORDS] [--again WORDS] [--output FILE] [--list] [--plain FILE.onnx] [--form TEXT]
    python benchmarks/h100.py --tensorrt benchmarks/results/speed/tensorrt86.json --only nothing   # into h100.json

Runs in CPython 3.10 without PyTorch, because TensorRT 8.6.0 has no bindings for newer ones. D is made on a machine
with a package index by ../shared/tools/pack_tensorrt.py, with the wheels that restort needs there (CPython 3.10,
manylinux, no dependencies; 44 MB together, 26 without NumPy, which the pack holds anyway):

    python pack_tensorrt.py --python-prefix PREFIX --out pieces --extra numpy==1.26.4 --extra onnx==1.23.2
        --extra protobuf==7.36.2 --extra ml_dtypes==0.5.4 --extra typing_extensions==4.16.0
        --extra cuda-bindings==13.0.3 --extra cuda-pathfinder==1.8.3 --extra safetensors==0.8.0
        --extra filelock==4.1.0 --extra platformdirs==4.12.4

or, for a pack that lacks them, into a folder WHEELS that travels beside it and is put on PYTHONPATH unpacked:

    pip download --no-deps --only-binary=:all: --implementation cp --python-version 3.10 -d WHEELS NAME==VERSION ...
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64

Every case is a process of its own with a limit (300 s for a build), and is recorded as soon as it is done; what the
file holds is not done again, and engines stay in the cache folder (RESTORT_CACHE) while the machine is kept, so the
script may be called until nothing is left. Weights are random, of the published sizes, and inputs are noise: speed
alone is measured here; accuracy is benchmarks/tensorrt_accuracy.py. Times are CUDA events around a CUDA graph, input
and output on the GPU, median; `copies_ms` is a call with NumPy arrays in and out, `stream_ms` one of many in a stream.

A case in 'plain' form builds the graph of --plain, an export by PyTorch of ELAN-light x4 at 1x3x192x320 (made by
benchmarks/plain_export.py, 3 MB), with the FP16 flag and nothing else, as the ports of 2022 did: the profile before.
Cases with 'kernels fused' are engines of RestoRT's own kernels, by the plugin RestortPass: RESTORT_PLUGIN names its
library, or it is compiled; their plans have to be in the same RESTORT_CACHE, made before in PyTorch's Python by

    python benchmarks/plan_make.py --workloads

Cases of another form (restort.export.form) or with other options of the build show what they buy; --form
'attention unit, level 2' has the cases without a form of their own run so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tensorrt86_cases import FUSED, PLAIN, Case, cases, parsed

HERE = Path(__file__).resolve().parent
Record = dict[str, Any]


def measure(case: Case, plain: Path | None) -> Record:
    """In the child: the engine, its times, its layers."""
    import numpy as np
    from gpu_workloads import NETWORKS, floor_ms, weights_of

    from restort.backends.tensorrt.keys import Profile
    from restort.backends.tensorrt.runner import TensorrtRunner
    from restort.backends.tensorrt.supply import Supply, profile_for

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(f"    {line}", file=sys.stderr, flush=True)

    weights = weights_of(case.network)
    size = (case.batch, case.height, case.width)
    profile = Profile.fixed(*size) if case.profile == "fixed" else profile_for(weights.spec, size)
    options = {} if case.level is None else {"level": case.level}
    options |= parsed(case.form)[1]
    runner = TensorrtRunner(weights, case.precision, profile=profile, options=options)
    runner.say = runner.warn = say
    if case.form and case.form != FUSED:
        other_graph(runner, case, plain)
    x = np.random.default_rng(0).random((case.batch, 3, case.height, case.width), np.float32)
    start = time.perf_counter()
    y = runner(x)
    first = time.perf_counter() - start
    assert y.shape[2] == case.height * weights.spec.scale and np.isfinite(y).all()
    once = runner.timer(x)
    engine = runner.engine_for(x)
    times = sorted(timed(once, 1.5))
    copies = timed(lambda: wall(lambda: runner(x)), 1.0)
    count = max(4, min(200, int(1000 / times[len(times) // 2])))
    streamed = wall(lambda: sum(1 for _ in engine.stream(x for _ in range(count)))) / count
    lane = next(iter(engine._lanes.values()))
    supply: Supply = runner._supplies[case.precision]
    (stored,) = [s for s in supply.cache.entries() if s.key == supply.key(profile).to_json()]
    floors = floor_ms(NETWORKS[case.network], case.batch, case.height, case.width, runner.device)
    about = stored.about
    record: Record = {
        "workload": case.workload,
        "backend": "tensorrt",
        "precision": case.precision,
        "batch": case.batch,
        "height": case.height,
        "width": case.width,
        "variant": case.variant,
        "median_ms": rounded(times[len(times) // 2]),
        "p95_ms": rounded(times[int(0.95 * (len(times) - 1))]),
        "calls": len(times),
        "peak_mib": round(engine.peak_bytes() / 2**20, 1),
        "floor_ms": rounded(floors["floor_ms"]),
        "share": rounded(floors["floor_ms"] / times[len(times) // 2]),
        "copies_ms": rounded(sorted(copies)[len(copies) // 2]),
        "stream_ms": rounded(streamed),
        "cuda_graph": lane.graph is not None,
        "build_s": about["seconds"],
        "built_now": any(line.startswith("built in") for line in said),
        "first_call_s": rounded(first),
        "engine_bytes": about["bytes"],
        "nodes": about["graph"]["nodes"],
        "flags": about["flags"],
        "engine_layers": about["layers"],
        "profile": str(profile),
        "layers": layers(engine, x),
        "device": runner.device,
    }
    if "plan" in about:
        record["plan"] = about["plan"]
    runner.close()
    return record


def other_graph(runner: Any, case: Case, plain: Path | None) -> None:
    """Makes the runner's supply build another graph, under a key of its own."""
    import onnx

    from restort.backends.tensorrt import supply
    from restort.export.typed import typed_graph

    def graph(weights: Any, precision: str, **options: Any) -> Any:
        if case.form == PLAIN:
            assert plain is not None
            return onnx.load(plain)
        return typed_graph(weights, precision, **{**options, "form": parsed(case.form)[0]})

    before = supply.graph_of
    supply.typed_graph = graph  # type: ignore[assignment]
    supply.graph_of = lambda *parts: before(*parts, case.form)  # type: ignore[assignment]
    if case.form == PLAIN:
        as_the_ports_did()


def as_the_ports_did() -> None:
    """The FP16 flag on a float32 graph, whose types are not looked at."""
    from restort.backends.tensorrt import build

    build.typed.check_precision = lambda model, precision: {}  # type: ignore[assignment]
    build.inspect.check = lambda *about: None  # type: ignore[assignment]


def layers(engine: Any, x: Any, runs: int = 10) -> list[Record]:
    """The engine's timeline: name and median milliseconds of each layer, in the order they run."""
    found: dict[str, list[float]] = {}
    module = engine.flavour.module

    class Profiler(module.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            found.setdefault(layer_name, []).append(ms)

    def work(context: Any, run: Any) -> None:
        profiler = Profiler()
        run()
        context.profiler = profiler
        for _ in range(runs):
            run()

    engine.with_context(x, work)
    return [
        {"name": name, "ms": rounded(sorted(times)[len(times) // 2]), "runs": len(times)}
        for name, times in found.items()
    ]


def timed(once: Any, seconds: float) -> list[float]:
    """Milliseconds of calls for about so long, at least 10."""
    for _ in range(3):
        once()
    end = time.monotonic() + seconds
    found: list[float] = []
    while len(found) < 10 or (time.monotonic() < end and len(found) < 2000):
        found.append(once())
    return found


def wall(call: Any) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def by_kind(record: Record) -> str:
    """The layers of a record in short: the share of the time by what their names begin with, or else hold."""
    total = sum(layer["ms"] for layer in record["layers"]) or 1.0
    kinds: dict[str, float] = {}
    for layer in record["layers"]:
        kind = kind_of(layer["name"].lower())
        kinds[kind] = kinds.get(kind, 0.0) + layer["ms"]
    parts = sorted(kinds.items(), key=lambda item: -item[1])
    return f"{len(record['layers'])} layers: " + ", ".join(f"{k} {100 * ms / total:.0f} %" for k, ms in parts)


def kind_of(name: str) -> str:
    """Myelin's layers are '{ForeignNode[first...last]}', and a reformatting names the layer that it is for."""
    if name.startswith("reformat"):
        return "reformat"
    if name.startswith("{foreignnode") or "myelin" in name:
        return "myelin"
    return next((k for k in ("conv", "softmax", "gather", "shuffle") if k in name), "other")


def versions() -> Record:
    from importlib import metadata

    found: Record = {"python": platform.python_version()}
    for name in ("tensorrt", "cuda-bindings", "numpy", "onnx"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        found["driver"] = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="TensorRT 8.6 on an H100")
    parser.add_argument("--seconds", type=float, default=560, help="begin nothing new after so long")
    parser.add_argument(
        "--only", help="cases whose name is, or else holds, one of these words (a comma between)"
    )
    parser.add_argument("--again", help="measure such cases once more")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "speed" / "tensorrt86.json")
    parser.add_argument("--plain", type=Path, help="a plain export of ELAN-light x4, for the profile before")
    parser.add_argument(
        "--form", default="", help="how all cases are to be built that do not say it themselves"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        answer = json.dumps(measure(Case(**json.loads(args.case)), args.plain))
        Path(os.environ["ANSWER"]).write_text(answer)
        return 0
    parsed(args.form)
    every = [replace(case, form=case.form or args.form) for case in cases(args.plain is not None)]
    wanted = [case for case in every if has_word(case, args.only)]
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    return run(args, wanted)


def has_word(case: Case, words: str | None) -> bool:
    """A word that is the whole name of a case means that case alone."""
    names = {str(other) for other in cases(True)}
    return words is None or any(
        word == str(case) if word in names else word in str(case) for word in words.split(",")
    )


def run(args: argparse.Namespace, wanted: list[Case]) -> int:
    end = time.monotonic() + args.seconds
    kept = json.loads(args.output.read_text()) if args.output.is_file() else {"records": [], "failures": []}
    about = {
        "versions": versions(),
        "command": shlex.join(["python", "benchmarks/tensorrt86.py", *sys.argv[1:]]),
    }
    failed = 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for case in wanted:
        done = any(record_key(record) == case.key for record in kept["records"])
        if done and not (args.again and has_word(case, args.again)):
            continue
        left = end - time.monotonic()
        if left < 20:
            print("the time is up; call again for what is left", flush=True)
            break
        now = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        start = time.monotonic()
        record = child(case, args.plain, min(case.limit, left))
        kept["failures"] = [f for f in kept["failures"] if f["case"] != str(case)]
        if "error" in record:
            failed += 1
            seconds = round(time.monotonic() - start)
            kept["failures"].append({"case": str(case), "seconds": seconds, **record, **about, **now})
            print(f"{case!s:56} FAILED: {record['error']}", flush=True)
        else:
            record["layer_summary"] = by_kind(record)
            keep_layers(args.output, case, record.pop("layers"))
            others = [r for r in kept["records"] if record_key(r) != case.key]
            kept["records"] = [*others, record | about | now]
            print(
                f"{case!s:56} {record['median_ms']:9.3f} ms  built in {record['build_s']:.0f} s  "
                f"{record['peak_mib']:.0f} MiB  {record['layer_summary']}",
                flush=True,
            )
        args.output.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if failed else 0


def keep_layers(output: Path, case: Case, layers: list[Record]) -> None:
    """The timelines, in a file of their own beside the records: there are hundreds of layers in some."""
    path = output.with_name(f"{output.stem}_layers.json")
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept[str(case)] = layers
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in kept.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record_key(record: Record) -> tuple[Any, ...]:
    return record["workload"], record["precision"], record["batch"], record["variant"]


def child(case: Case, plain: Path | None, limit: float) -> Record:
    """The record of a case, or {"error"}."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        more = [] if plain is None else ["--plain", str(plain)]
        command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), *more]
        with (Path(folder) / "errors").open("w+b") as errors:
            process = subprocess.Popen(
                command, env={**os.environ, "ANSWER": str(answer)}, stdout=errors, stderr=errors
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return {"error": f"no result within {limit:.0f} s"}
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        if status or not answer.is_file():
            return {"error": lines[-1][:400] if lines else f"status {status}", "log": lines[-12:]}
        found: Record = json.loads(answer.read_text())
        return found


if __name__ == "__main__":
    sys.exit(main())
