"""How fast is every backend on this GPU? Every speed figure of the README's GPU table, into results/speed/h100.json.

    python benchmarks/bench_gpu.py [--seconds 540] [--only WORDS] [--again WORDS] [--list] [--smoke]
                       [--compile auto|whole|regional] [--tensorrt FILE.json] [--output FILE]

Cases run in the order of their importance, those of a backend in one process; the file is written after each, and a
later run continues it. Times are of one call, batch included, by CUDA's events, input and output on the device, the L2
as the call before left it. `variant` tells cases of one backend apart: 'first process' begins with empty caches,
'second process' with those that it left.

--compile    how torch.compile has the network: an ELAN whole, a Restormer block by block (auto), because as a whole it
             takes minutes to compile; whole or regional chooses otherwise, as a variant of its own
--tensorrt   take over the records of benchmarks/bench_tensorrt.py, which needs a Python of its own
--smoke      tiny networks on the CPU, kernels interpreted: tries the script, measures nothing
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import (
    RESULTS,
    Failed,
    Record,
    Records,
    Worker,
    about,
    clocks,
    common_arguments,
    cuda_events,
    matching,
    median,
    percentile,
    relative_l2,
    repeated,
    rounded,
    run_cases,
    serve,
    wall_clock,
)
from workloads import BATCHES, LARGE, NETWORKS, WORKLOADS, name_of, roofline, weights_of

SMOKE = "--smoke" in sys.argv
DEVICE = "cpu" if SMOKE else "cuda"
CHECKED_PIXELS = 1280 * 720  # up to so many the output of fused is compared with float32
WHOLE = "the whole network at once"
REGIONAL = "every block by itself"


@dataclass(frozen=True)
class Case:
    """One measurement."""

    network: str
    backend: str
    precision: str
    height: int
    width: int
    batch: int = 1
    variant: str = ""
    seconds: float = 1.5  # of timed calls
    limit: float = 240.0  # seconds for all of it

    @property
    def workload(self) -> str:
        return name_of((self.network, self.height, self.width))

    @property
    def key(self) -> Record:
        return {n: getattr(self, n) for n in ("workload", "backend", "precision", "batch", "variant")}

    def __str__(self) -> str:
        batch = f" x{self.batch}" if self.batch > 1 else ""
        return f"{self.workload}{batch} {self.backend}:{self.precision}{f' ({self.variant})' * bool(self.variant)}"


def cases(compiled: str = "auto") -> Iterator[Case]:
    """All of them, the most important first; those of one backend together, because they share a process."""
    fresh = [WORKLOADS[1], WORKLOADS[4]]
    variant = {"auto": "", "whole": WHOLE, "regional": REGIONAL}[compiled]
    by_cost = sorted(WORKLOADS, key=lambda workload: workload[0] == "restormer")
    for network, h, w in [*WORKLOADS, LARGE[0]]:
        yield Case(network, "fused", "fp16", h, w)
    for network, h, w in by_cost:
        yield Case(network, "torch-compile", "fp16", h, w, variant=variant, limit=300)
    for precision in ("fp16", "fp32"):
        for network, h, w in WORKLOADS:
            yield Case(network, "torch", precision, h, w)
    for network, h, w in WORKLOADS:
        yield Case(network, "fused", "bf16", h, w)
    for batch in BATCHES:
        yield Case("restormer", "fused", "fp16", 256, 256, batch, seconds=1)
    for network, h, w in LARGE[1:]:
        yield Case(network, "fused", "fp16", h, w, seconds=1)
    for network, h, w in fresh:
        for name in ("first process", "second process"):
            yield Case(network, "fused", "fp16", h, w, variant=name, seconds=0.2)
    for precision in ("fp16", "fp32"):
        for network, h, w in WORKLOADS:
            yield Case(network, "onnxruntime-cuda", precision, h, w)
    yield Case("restormer", "torch", "fp16", 256, 256, 8)


def smoke_cases() -> Iterator[Case]:
    """One of every kind, tiny, and one that fails."""
    for network in ("restormer", "elan-light-x4"):
        for backend in ("torch", "onnxruntime-cuda"):
            yield Case(network, backend, "fp32", 16, 16, seconds=0.01)
    yield Case("elan-light-x4", "fused", "fp16", 16, 16, variant="first process", seconds=0.01)
    yield Case("elan-light-x4", "nonsense", "fp16", 16, 16, seconds=0.01)


# The worker


@dataclass
class Run:
    """A backend made ready: `call()` runs once, or `clock()` runs once and returns milliseconds.

    result   the output as an array, to see that it is finite.
    peak     MiB of the device, where PyTorch's allocator does not know.
    """

    call: Callable[[], Any] = lambda: None
    clock: Callable[[], float] | None = None
    result: Callable[[], Any] | None = None
    peak: Callable[[], float | None] | None = None
    extra: Record = field(default_factory=dict)

    def once(self) -> float:
        if self.clock is not None:
            return self.clock()
        return wall_clock(self.call) if DEVICE == "cpu" else cuda_events(self.call)


def fused(case: Case, weights: Any, x: Any) -> Run:
    """RestoRT's own kernels."""
    import torch

    from restort.backends.fused.networks import PlainNetwork
    from restort.backends.fused.runner import FusedRunner

    start = time.perf_counter()
    runner: Any = FusedRunner(weights, case.precision, device="cpu" if SMOKE else None)
    runner.notify = runner.warn = lambda line: print(line, file=sys.stderr)
    made = time.perf_counter()
    host = x.cpu().numpy()
    y = runner(host)
    first = time.perf_counter()
    runner(host)
    extra: Record = {
        "create_ms": round(1e3 * (made - start), 1),
        "first_call_ms": round(1e3 * (first - made), 1),
        "call_ms_host": round(1e3 * (time.perf_counter() - first), 1),  # NumPy arrays in and out
        "launches": len(runner._networks[case.precision].instances.get((x.shape[0], *x.shape[2:])).launches),
    }
    if case.batch * case.height * case.width <= CHECKED_PIXELS and not case.variant:
        wanted, _ = PlainNetwork(weights, torch.device(DEVICE)).run_tensor(x, False)
        extra["relative_l2"] = rounded(relative_l2(y, wanted.cpu().numpy()), 3)
    run = Run(lambda: runner.run_tensor(x), extra=extra, result=lambda: runner(host))
    run.clock = None if SMOKE else runner.timer(host)
    return run


def original(case: Case, weights: Any, x: Any) -> tuple[Any, Any]:
    """The network as its authors wrote it, and its input."""
    from peers import Eager

    net = Eager(weights.state, weights.spec, dtype_of(case))
    net.state = {name: value.to(DEVICE) for name, value in net.state.items()}
    return net, (x * weights.spec.value_range).to(dtype_of(case))


def dtype_of(case: Case) -> Any:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[case.precision]


def eager(case: Case, weights: Any, x: Any) -> Run:
    """PyTorch as the originals are written, NCHW."""
    net, x = original(case, weights, x)
    return Run(lambda: net(x), result=lambda: net(x).float().cpu().numpy())


def compiled(case: Case, weights: Any, x: Any) -> Run:
    """torch.compile; `--compile` says of what."""
    import torch

    from restort.models.spec import ElanSpec

    torch._dynamo.config.cache_size_limit = 256
    whole = case.variant == WHOLE or (case.variant != REGIONAL and isinstance(weights.spec, ElanSpec))
    if whole:
        net, x = original(case, weights, x)
        network = torch.compile(net.network, dynamic=False)
        note = "compiled whole: the network as its authors wrote it"
    else:
        from restort.models.elan import Group
        from restort.models.restormer import Block
        from restort.models.torch_network import build

        network = build(weights.spec, weights.state, dtype_of(case)).to(DEVICE)
        for module in network.modules():
            if isinstance(module, (Block, Group)):
                module.compile(dynamic=False)
        x = (x * weights.spec.value_range).to(dtype_of(case))
        note = "compiled regional: every block of restort.models by itself, the rest eager"
    start = time.perf_counter()
    network(x)
    wait()
    extra = {"first_call_ms": round(1e3 * (time.perf_counter() - start), 1), "note": note}
    return Run(lambda: network(x), result=lambda: network(x).float().cpu().numpy(), extra=extra)


def onnxruntime(case: Case, weights: Any, x: Any) -> Run:
    """The graph that RestoRT emits, on ONNX Runtime's CUDA provider, on PyTorch's stream, memory bound."""
    import numpy as np
    import onnxruntime as ort
    import torch

    from restort.export.emit import emit

    before = free_bytes()
    provider: Any = "CPUExecutionProvider"
    if not SMOKE:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        stream = str(torch.cuda.current_stream().cuda_stream)
        options = {"user_compute_stream": stream, "cudnn_conv_use_max_workspace": "1"}
        provider = ("CUDAExecutionProvider", options)
    graph = emit(weights, case.precision).SerializeToString()
    session = ort.InferenceSession(graph, providers=[provider])
    if session.get_providers()[0] == "CPUExecutionProvider" and not SMOKE:
        raise RuntimeError(f"onnxruntime {ort.__version__} has no CUDA provider that loads")
    x = x.to(dtype_of(case)).contiguous()
    spec = weights.spec
    shape = (x.shape[0], spec.out_channels, x.shape[2] * spec.scale, x.shape[3] * spec.scale)
    y = torch.empty(shape, dtype=x.dtype, device=DEVICE)
    binding = session.io_binding()
    kind = np.float16 if x.dtype == torch.float16 else np.float32
    binding.bind_input("input", DEVICE, 0, kind, tuple(x.shape), x.data_ptr())
    binding.bind_output("output", DEVICE, 0, kind, tuple(y.shape), y.data_ptr())

    def call() -> None:
        session.run_with_iobinding(binding)

    start = time.perf_counter()
    call()
    wait()

    def peak() -> float | None:
        """Of the whole GPU, so unknown where others gave memory back meanwhile."""
        used = before - free_bytes()
        return used / 2**20 if used > 0 else None

    extra = {
        "first_call_ms": round(1e3 * (time.perf_counter() - start), 1),
        "note": f"RestoRT's graph in {case.precision}, bound",
    }
    return Run(call, result=lambda: y.float().cpu().numpy(), peak=peak, extra=extra)


BACKENDS: dict[str, Callable[[Case, Any, Any], Run]] = {
    "fused": fused,
    "torch": eager,
    "torch-compile": compiled,
    "onnxruntime-cuda": onnxruntime,
}


def free_bytes() -> int:
    import torch

    return 0 if DEVICE == "cpu" else int(torch.cuda.mem_get_info()[0])


def wait() -> None:
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(question: Record) -> Record:
    """In the worker: a record, without what the parent knows."""
    import numpy as np
    import torch

    case = Case(**question)
    if case.backend not in BACKENDS:
        raise ValueError(f"unknown backend {case.backend!r} (known: {', '.join(BACKENDS)})")
    torch._dynamo.reset()
    gc.collect()
    began = time.perf_counter()
    weights = weights_of(case.network, SMOKE)
    shape = (case.batch, weights.spec.in_channels, case.height, case.width)
    x = torch.from_numpy(np.random.default_rng(0).random(shape, np.float32)).to(DEVICE)
    with torch.no_grad():
        run = BACKENDS[case.backend](case, weights, x)
        ready = time.perf_counter()
        gc.collect()
        if DEVICE == "cuda":  # the peak is that of calls, not of compiling or of the reference
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = repeated(run.once, case.seconds, 2 if SMOKE else 20, 3 if SMOKE else 1000)
        finite = None if run.result is None else bool(np.isfinite(run.result()).all())
    peak = run.peak() if run.peak is not None else None
    if run.peak is None and DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    device = "CPU, interpreted" if DEVICE == "cpu" else torch.cuda.get_device_name()
    bound = roofline(weights.spec, case.batch, case.height, case.width, device)["roofline_ms"]
    return {
        "height": case.height,
        "width": case.width,
        "median_ms": round(median(times), 4),
        "p95_ms": round(percentile(times, 0.95), 4),
        "min_ms": round(min(times), 4),
        "peak_mib": None if peak is None else round(peak, 1),
        "roofline_ms": round(bound, 4),
        "share": round(bound / median(times), 3),
        "device": device,
        "calls": len(times),
        "timer": "wall clock" if SMOKE else "CUDA events, input and output on the device",
        "finite": finite,
        "prepare_s": round(ready - began, 2),
        **run.extra,
    }


# The parent


class Pool:
    """The process of the current backend, and processes of their own for cases that want one."""

    def __init__(self) -> None:
        self.backend = ""
        self.worker: Worker | None = None
        self.caches = tempfile.TemporaryDirectory(prefix="restort-bench-")

    def measure(self, case: Case, left: float) -> Record:
        limit = min(case.limit, left)
        if case.variant.endswith("process"):
            return self._in_its_own(case, limit)
        if self.worker is None or case.backend != self.backend:
            self.drop()
            self.backend, self.worker = case.backend, start({})
        try:
            return self.worker.ask(asdict(case), limit) | {"clocks": clocks()}
        except Failed:
            self.drop()
            raise

    def _in_its_own(self, case: Case, limit: float) -> Record:
        """In a process of its own; both processes of a workload share a folder of caches, empty at first."""
        folder = Path(self.caches.name) / case.workload
        began = time.monotonic()
        worker = start({"TRITON_CACHE_DIR": str(folder / "triton"), "RESTORT_CACHE": str(folder / "restort")})
        try:
            found = worker.ask(asdict(case), limit)
        finally:
            worker.close()
        found["process_s"] = round(time.monotonic() - began, 2)
        found["note"] = "prepare_s: weights, kernels, CUDA graph, two calls; process_s: all, imports included"
        return found

    def drop(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def close(self) -> None:
        self.drop()
        self.caches.cleanup()


def start(caches: dict[str, str]) -> Worker:
    usual = os.environ.get("RESTORT_CACHE") or str(Path(tempfile.gettempdir(), "restort-bench-cache"))
    environment = {"RESTORT_CACHE": usual} | caches | ({"TRITON_INTERPRET": "1"} if SMOKE else {})
    return Worker(Path(__file__), *(["--smoke"] if SMOKE else []), environment=environment)


def take_over(records: Records, path: Path) -> None:
    """Records of another script, with what they lack: the roofline, versions, command and date."""
    for other in json.loads(path.read_text("utf-8"))["records"]:
        network = other["workload"].rpartition("-")[0]
        made = {"backend": "tensorrt", "batch": 1, "variant": "", "p95_ms": None, "peak_mib": None, **other}
        size = made["batch"], made["height"], made["width"]
        bound = roofline(NETWORKS[network], *size, made.get("device", ""))["roofline_ms"]
        made.setdefault("roofline_ms", round(bound, 4))
        made.setdefault("share", round(bound / made["median_ms"], 3))
        key = {n: made[n] for n in ("workload", "backend", "precision", "batch", "variant")}
        records.add(key, about() | made)


def describe(record: Record) -> str:
    return (
        f"{record['median_ms']:10.3f} ms  p95 {record['p95_ms']:9.3f}  {record['peak_mib'] or 0:9.0f} MiB  "
        f"roofline {record['roofline_ms']:7.3f} ({record['share']:.0%})"
    )


def table(records: list[Record]) -> str:
    """The workloads, every backend against fused fp16."""
    ours = {
        r["workload"]: r["median_ms"]
        for r in records
        if (r["backend"], r["precision"], r["batch"], r.get("variant", "")) == ("fused", "fp16", 1, "")
    }
    lines = [
        f"{r['workload']:26} {r['backend'] + ' ' + r['precision']:22} {r['median_ms']:9.3f} ms  "
        f"{r['median_ms'] / ours[r['workload']]:6.2f} x fused"
        for r in records
        if r["workload"] in ours and r["batch"] == 1 and not r.get("variant")
    ]
    return "\n".join(sorted(lines))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Path(tempfile.gettempdir(), "smoke.json") if SMOKE else RESULTS / "speed" / "h100.json"
    common_arguments(parser, usual)
    parser.add_argument("--compile", choices=("auto", "whole", "regional"), default="auto")
    parser.add_argument("--tensorrt", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(measure)
    every = list(smoke_cases() if SMOKE else cases(args.compile))
    wanted = matching(every, args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    records, pool = Records(args.output), Pool()
    if args.tensorrt is not None:
        take_over(records, args.tensorrt)
    again = matching(every, args.again) if args.again else ()
    try:
        failed = run_cases(wanted, records, pool.measure, describe, seconds=args.seconds, again=again)
    finally:
        pool.close()
    print(table(records.records))
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
