"""How fast are TensorRT 8.6's engines, and how long do they build? Into results/speed/tensorrt86.json.

    . D/env.sh && PYTHONPATH=src:benchmarks:$PYTHONPATH $TRT_PYTHON benchmarks/bench_tensorrt.py [--seconds 560]
                  [--only WORDS] [--again WORDS] [--output FILE] [--list] [--plain FILE.onnx] [--form TEXT]
    python benchmarks/bench_gpu.py --tensorrt benchmarks/results/speed/tensorrt86.json --only nothing   # into h100.json

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

Every case is a process of its own with a limit (300 s for a build). Engines stay in the cache folder (RESTORT_CACHE).
Weights are random and inputs are noise: accuracy is benchmarks/accuracy.py. `median_ms` is by CUDA events around a CUDA
graph of the whole engine, input and output on the GPU; `copies_ms` is a call with NumPy arrays in and out, `stream_ms`
one of many in a stream. The layers of an engine go to FILE_layers.json: their times are IProfiler's, without a CUDA
graph and with events around each layer, so their sum is above the median where layers are short.

--plain   also the engine of a plain export of ELAN-light x4 with the FP16 flag and nothing else, as the ports of 2022
          did. The export, in PyTorch's Python: python benchmarks/bench_tensorrt.py --write-plain FILE.onnx
--form    other choices of the graph (restort.export.form) or the build, such as 'norm layer, level 2'

Cases with 'kernels fused' are engines of RestoRT's own kernels, by the plugin RestortPass: RESTORT_PLUGIN names its
library, or it is compiled; the networks compiled ahead have to be in the same RESTORT_CACHE, made before in PyTorch's
Python by `python benchmarks/check_aot.py compile --workloads`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness import (
    RESULTS,
    Record,
    Records,
    Worker,
    common_arguments,
    matching,
    median,
    percentile,
    repeated,
    rounded,
    run_cases,
    serve,
    wall_clock,
    write_json,
)
from workloads import NETWORKS, WORKLOADS, name_of, roofline, weights_of

PRECISIONS = ("fp16", "tf32", "fp32")
PLAIN = "plain"  # the graph of --plain, with the FP16 flag and nothing else
PLAIN_WORKLOAD = ("elan-light-x4", 192, 320)
FUSED = "kernels fused"
OPTIONS = ("level", "kernels")


@dataclass(frozen=True)
class Case:
    """One engine. `profile` is 'fixed', or 'dynamic' for the sizes that `--backend tensorrt` takes; `form` says what
    is not as usual (see `parsed`)."""

    network: str
    height: int
    width: int
    precision: str = "fp16"
    profile: str = "fixed"
    form: str = ""
    batch: int = 1
    level: int | None = None
    limit: float = 330.0

    @property
    def workload(self) -> str:
        return name_of((self.network, self.height, self.width))

    @property
    def variant(self) -> str:
        level = "" if self.level is None else f"level {self.level}"
        profile = "" if self.profile == "fixed" else self.profile
        return ", ".join(part for part in (profile, self.form, level) if part)

    @property
    def key(self) -> Record:
        return {name: getattr(self, name) for name in ("workload", "precision", "batch", "variant")}

    def __str__(self) -> str:
        return f"{self.workload} x{self.batch} {self.precision}{f' ({self.variant})' * bool(self.variant)}"


def cases(plain: bool) -> Iterator[Case]:
    """The most important first."""
    for workload in WORKLOADS:
        yield Case(*workload, form=FUSED)
    for workload in sorted(WORKLOADS):
        yield Case(*workload)
    yield Case(*PLAIN_WORKLOAD, profile="dynamic")
    if plain:
        yield Case(*PLAIN_WORKLOAD, form=PLAIN)
    for precision in PRECISIONS[1:]:
        yield Case(*PLAIN_WORKLOAD, precision)
    yield Case("restormer", 368, 552, profile="dynamic")
    yield Case(*PLAIN_WORKLOAD, level=5)
    yield Case("restormer", 256, 256, batch=8)
    for precision in PRECISIONS[1:]:
        yield Case("restormer", 256, 256, precision)


def parsed(form: str) -> tuple[Any, dict[str, Any]]:
    """The form of the graph and the fields of BuildOptions that a text such as 'norm layer, level 2' names."""
    from restort.backends.tensorrt.options import BuildOptions
    from restort.export.form import WEAKLY_TYPED, Form

    changes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in form.split(",") if form != PLAIN)):
        name, _, value = part.partition(" ")
        if name in OPTIONS:
            options[name] = int(value) if value.isdigit() else value
        elif name in {field.name for field in fields(Form)}:
            changes[name] = value
        else:
            raise ValueError(f"{part!r}: no field of Form, and none of {', '.join(OPTIONS)}")
    assert set(options) <= {field.name for field in fields(BuildOptions)}
    return Form(**{**asdict(WEAKLY_TYPED), **changes}), options


def measure(case: Case, plain: Path | None) -> Record:
    """In the worker: the engine, its times, its layers."""
    import numpy as np

    from restort.backends.tensorrt.options import Profile
    from restort.backends.tensorrt.provider import EngineProvider, profile_for
    from restort.backends.tensorrt.runner import TensorrtRunner

    said: list[str] = []

    def notify(line: str) -> None:
        said.append(line)
        print(f"    {line}", file=sys.stderr, flush=True)

    weights = weights_of(case.network)
    size = (case.batch, case.height, case.width)
    profile = Profile.fixed(*size) if case.profile == "fixed" else profile_for(weights.spec, size)
    options = {} if case.level is None else {"level": case.level}
    runner = TensorrtRunner(weights, case.precision, profile=profile, options=options | parsed(case.form)[1])
    runner.notify = runner.warn = notify
    if case.form and case.form != FUSED:
        other_graph(runner, case, plain)
    x = np.random.default_rng(0).random((case.batch, 3, case.height, case.width), np.float32)
    start = time.perf_counter()
    y = runner(x)
    first = time.perf_counter() - start
    assert y.shape[2] == case.height * weights.spec.scale and np.isfinite(y).all()
    once = runner.timer(x)
    engine = runner.engine_for(x)
    times = repeated(once, 1.5)
    copies = repeated(lambda: wall_clock(lambda: runner(x)), 1.0)
    count = max(4, min(200, int(1000 / median(times))))
    stream_time = wall_clock(lambda: sum(1 for _ in engine.stream(x for _ in range(count)))) / count
    context = next(iter(engine._contexts.values()))
    provider: EngineProvider = runner._providers[case.precision]
    (stored,) = [s for s in provider.cache.entries() if s.key == provider.key(profile).to_json()]
    bound = roofline(NETWORKS[case.network], case.batch, case.height, case.width, runner.device)[
        "roofline_ms"
    ]
    about = stored.about
    record: Record = {
        "backend": "tensorrt",
        "height": case.height,
        "width": case.width,
        "median_ms": rounded(median(times)),
        "p95_ms": rounded(percentile(times, 0.95)),
        "calls": len(times),
        "peak_mib": round(engine.peak_bytes() / 2**20, 1),
        "roofline_ms": rounded(bound),
        "share": rounded(bound / median(times)),
        "copies_ms": rounded(median(copies)),
        "stream_ms": rounded(stream_time),
        "cuda_graph": context.graph is not None,
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
    if "aot" in about:
        record["aot"] = about["aot"]
    runner.close()
    return record


def other_graph(runner: Any, case: Case, plain: Path | None) -> None:
    """Makes the runner build another graph, under a key of its own."""
    import onnx

    from restort.backends.tensorrt import builder, provider
    from restort.export.typed import typed_graph

    def graph(weights: Any, precision: str, **options: Any) -> Any:
        if case.form == PLAIN:
            assert plain is not None
            return onnx.load(plain)
        return typed_graph(weights, precision, **{**options, "form": parsed(case.form)[0]})

    before = provider.graph_digest
    provider.typed_graph = graph  # type: ignore[assignment]
    provider.graph_digest = lambda *parts: before(*parts, case.form)  # type: ignore[assignment]
    if case.form != PLAIN:
        return

    def hold_no_layers(flavour: Any, network: Any, config: Any, *more: Any) -> Record:
        config.set_flag(flavour.module.BuilderFlag.FP16)
        return {"layer_precisions": "none"}

    # The FP16 flag on a float32 graph: no layer is held to a type, and none is checked.
    builder._hold_layers = hold_no_layers
    builder.typed.check_precision = lambda model, precision: {}  # type: ignore[assignment]
    builder.inspector.check_precision = lambda *about: None


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
    return [{"name": name, "ms": rounded(median(times)), "runs": len(times)} for name, times in found.items()]


def by_kind(layers: list[Record]) -> str:
    """Layers in short: the share of the time by what their names begin with or hold."""
    total = sum(layer["ms"] for layer in layers) or 1.0
    kinds: dict[str, float] = {}
    for layer in layers:
        kind = kind_of(layer["name"].lower())
        kinds[kind] = kinds.get(kind, 0.0) + layer["ms"]
    parts = sorted(kinds.items(), key=lambda item: -item[1])
    return f"{len(layers)} layers: " + ", ".join(f"{kind} {100 * ms / total:.0f} %" for kind, ms in parts)


def kind_of(name: str) -> str:
    """Myelin's layers are '{ForeignNode[first...last]}'; a reformatting names the layer that it is for."""
    if name.startswith("reformat"):
        return "reformat"
    if name.startswith("{foreignnode") or "myelin" in name:
        return "myelin"
    return next((k for k in ("conv", "softmax", "gather", "shuffle") if k in name), "other")


def write_plain(target: Path) -> None:
    """Export ELAN-light x4 as its authors wrote it, by PyTorch: what the ports of 2022 began with.

    Fixed shape, float32, opset 17 and IR version 8, which TensorRT 8.6 reads; the weights of weights_of.
    """
    import onnx
    import onnxruntime as ort
    import torch
    from peers import Eager

    network, height, width = PLAIN_WORKLOAD
    weights = weights_of(network)

    class Plain(torch.nn.Module):
        """Pictures in [0, 1] in and out, as RestoRT's graphs have them."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = weights.spec.value_range
            return Eager(weights.state, weights.spec)(x * scale) / scale

    names = {"input_names": ["input"], "output_names": ["output"]}
    with torch.no_grad():
        x = torch.rand(1, 3, height, width)
        torch.onnx.export(Plain(), (x,), str(target), opset_version=17, dynamo=False, **names)
    # The shape is fixed, so the arithmetic on shapes is constant; the ports ran a simplifier to the same end.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(target.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    model.ir_version = 8
    used = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(used)
    onnx.save(model, target)
    print(f"{target}: {len(model.graph.node)} nodes, {target.stat().st_size / 1e6:.1f} MB")


def in_a_process(case: Case, plain: Path | None, limit: float) -> Record:
    """The record of a case, from a process of its own."""
    worker = Worker(Path(__file__), *([] if plain is None else ["--plain", str(plain)]))
    try:
        return worker.ask(asdict(case), limit)
    finally:
        worker.close()


def run(args: argparse.Namespace, wanted: list[Case]) -> int:
    def measured(case: Case, left: float) -> Record:
        record = in_a_process(case, args.plain, min(case.limit, left))
        timeline = record.pop("layers")
        record["layer_summary"] = by_kind(timeline)
        keep_layers(args.output, case, timeline)
        return record

    def describe(record: Record) -> str:
        return (
            f"{record['median_ms']:9.3f} ms  built in {record['build_s']:.0f} s  {record['peak_mib']:.0f} MiB  "
            f"{record['layer_summary']}"
        )

    again = matching(wanted, args.again) if args.again else ()
    failed = run_cases(wanted, Records(args.output), measured, describe, seconds=args.seconds, again=again)
    return min(1, failed)


def keep_layers(output: Path, case: Case, timeline: list[Record]) -> None:
    """The timelines, in a file of their own: some engines have thousands of layers."""
    path = output.with_name(f"{output.stem}_layers.json")
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write_json(path, kept | {str(case): timeline}, indent=None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, RESULTS / "speed" / "tensorrt86.json", 560)
    parser.add_argument("--plain", type=Path, metavar="FILE.onnx")
    parser.add_argument("--write-plain", type=Path, metavar="FILE.onnx")
    parser.add_argument("--form", default="", help="how all cases without a form of their own are built")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(lambda question: measure(Case(**question), args.plain))
    if args.write_plain:
        write_plain(args.write_plain)
        return 0
    if args.form:
        parsed(args.form)  # before anything is built
    every = [replace(case, form=case.form or args.form) for case in cases(args.plain is not None)]
    wanted = matching(every, args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    return run(args, wanted)


if __name__ == "__main__":
    sys.exit(main())
