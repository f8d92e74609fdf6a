"""A process of benchmarks/h100.py: reads cases, a JSON line each, measures them, answers a line each.

    python benchmarks/gpu_child.py [--smoke]

A backend is a function (case, weights, x on the device) -> Run; every call is timed by CUDA's events on the stream
it runs on, with input and output on the device.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gpu_workloads import Case, floor_ms, weights_of
from peers import Eager, _elan, _restormer

from restort.models.spec import ElanSpec
from restort.weights.checkpoint import Weights

SMOKE = "--smoke" in sys.argv
DEVICE = torch.device("cpu" if SMOKE else "cuda")
LEAST_CALLS, MOST_CALLS = (2, 3) if SMOKE else (20, 1000)
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Run:
    """Something to time: `call()` runs once, or `clock()` runs once and returns milliseconds."""

    call: Callable[[], Any] = lambda: None
    clock: Callable[[], float] | None = None
    result: Callable[[], Any] | None = None  # the output as an array, to see that it is one
    peak: Callable[[], float | None] | None = None  # MiB
    extra: dict[str, Any] = field(default_factory=dict)

    def once(self) -> float:
        if self.clock is not None:
            return self.clock()
        if DEVICE.type == "cpu":
            start = time.perf_counter()
            self.call()
            return 1e3 * (time.perf_counter() - start)
        start_event, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        self.call()
        end.record()
        end.synchronize()
        return float(start_event.elapsed_time(end))


def fused(case: Case, weights: Weights, x: torch.Tensor) -> Run:
    """restort's own."""
    from restort.backends.fused.runner import FusedRunner

    start = time.perf_counter()
    runner = FusedRunner(weights, case.precision, device="cpu" if SMOKE else None)
    runner.say = runner.warn = lambda line: print(line, file=sys.stderr)
    made = time.perf_counter()
    host = x.cpu().numpy()
    y = runner(host)
    first = time.perf_counter()
    runner(host)
    extra = {
        "create_ms": 1e3 * (made - start),
        "first_call_ms": 1e3 * (first - made),
        "call_ms_host": 1e3 * (time.perf_counter() - first),  # NumPy arrays in and out
        "launches": len(runner._networks[case.precision].instances.get(_nhw(x)).launches),  # type: ignore[attr-defined]
    }
    if x.numel() <= 3 * 1280 * 720 and not case.variant:
        extra["relative_l2"] = _distance(y, weights, x)
    run = Run(lambda: runner.run_tensor(x), extra=extra, result=lambda: runner(host))
    run.clock = None if SMOKE else runner.timer(host)
    return run


def _nhw(x: torch.Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def _distance(y: np.ndarray, weights: Weights, x: torch.Tensor) -> float:
    """Of a result from float32's, relative L2."""
    from restort.backends.fused.networks import PlainNetwork

    want, _ = PlainNetwork(weights, DEVICE).run_tensor(x, False)
    return float(np.linalg.norm(y - want.cpu().numpy()) / want.norm().item())


def eager(case: Case, weights: Weights, x: torch.Tensor) -> Run:
    """PyTorch as the originals are written, NCHW."""
    net, x = original(weights, case, x)
    return Run(lambda: net(x), result=lambda: net(x).float().cpu().numpy())


def original(weights: Weights, case: Case, x: torch.Tensor) -> tuple[Eager, torch.Tensor]:
    net = Eager(weights.state, weights.spec, TYPES[case.precision])
    net.state = {name: value.to(DEVICE) for name, value in net.state.items()}
    return net, (x * weights.spec.value_range).to(TYPES[case.precision])


def compiled(case: Case, weights: Weights, x: torch.Tensor) -> Run:
    """torch.compile: an ELAN whole; a Restormer block by block, because as a whole it takes minutes to compile.

    GPU_COMPILE=whole or regional chooses otherwise.
    """
    torch._dynamo.config.cache_size_limit = 256
    way = os.environ.get("GPU_COMPILE") or ("whole" if isinstance(weights.spec, ElanSpec) else "regional")
    if way == "whole":
        net, x = original(weights, case, x)
        function = _elan if isinstance(weights.spec, ElanSpec) else _restormer
        whole = torch.compile(lambda image: function(net, weights.spec, image), dynamic=False)  # type: ignore[operator]
        call: Callable[[], Any] = lambda: whole(x)  # noqa: E731
        note = "the whole network, written as the originals are"
    else:
        from restort.models.build import build
        from restort.models.elan import Group
        from restort.models.restormer import Block

        model = build(weights.spec, weights.state, TYPES[case.precision]).to(DEVICE)
        for module in model.modules():
            if isinstance(module, (Block, Group)):
                module.compile(dynamic=False)
        x = (x * weights.spec.value_range).to(TYPES[case.precision])
        call = lambda: model(x)  # noqa: E731
        note = "every block of restort.models by itself, the rest eager"
    start = time.perf_counter()
    call()
    _wait()
    extra = {"first_call_ms": 1e3 * (time.perf_counter() - start), "note": f"compiled {way}: {note}"}
    return Run(call, result=lambda: call().float().cpu().numpy(), extra=extra)


def onnxruntime(case: Case, weights: Weights, x: torch.Tensor) -> Run:
    """The graph that restort emits, on ONNX Runtime's CUDA provider, on PyTorch's stream, memory bound."""
    import onnxruntime as ort

    from restort.export.emit import emit

    before = _free()
    wanted: Any = "CPUExecutionProvider"
    if not SMOKE:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise RuntimeError(f"onnxruntime {ort.__version__} here has no CUDA provider")
        stream = str(torch.cuda.current_stream().cuda_stream)
        wanted = (
            "CUDAExecutionProvider",
            {"user_compute_stream": stream, "cudnn_conv_use_max_workspace": "1"},
        )
    session = ort.InferenceSession(
        emit(weights, case.precision).SerializeToString(),
        providers=[wanted],  # type: ignore[arg-type]
    )
    if session.get_providers()[0] == "CPUExecutionProvider" and not SMOKE:
        raise RuntimeError("onnxruntime's CUDA provider did not load")
    x = x.to(TYPES[case.precision]).contiguous()
    scale, spec = weights.spec.scale, weights.spec
    y = torch.empty(
        (x.shape[0], spec.out_channels, x.shape[2] * scale, x.shape[3] * scale), dtype=x.dtype, device=DEVICE
    )
    binding = session.io_binding()
    kind = np.float16 if x.dtype == torch.float16 else np.float32
    binding.bind_input("input", DEVICE.type, 0, kind, tuple(x.shape), x.data_ptr())
    binding.bind_output("output", DEVICE.type, 0, kind, tuple(y.shape), y.data_ptr())

    def call() -> None:
        session.run_with_iobinding(binding)

    start = time.perf_counter()
    call()
    _wait()
    extra = {
        "first_call_ms": 1e3 * (time.perf_counter() - start),
        "note": f"restort's graph in {case.precision}, bound",
    }

    def peak() -> float | None:
        """Of the whole GPU, so nothing is known where others gave memory back meanwhile."""
        used = None if before is None else (before - _free()) / 2**20  # type: ignore[operator]
        return used if used is not None and used > 0 else None

    return Run(call, result=lambda: y.float().cpu().numpy(), peak=peak, extra=extra)


BACKENDS = {"fused": fused, "torch": eager, "torch-compile": compiled, "onnxruntime-cuda": onnxruntime}


def _free() -> int | None:
    return None if DEVICE.type == "cpu" else torch.cuda.mem_get_info()[0]


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(case: Case) -> dict[str, Any]:
    """A record, without what the parent knows."""
    began = time.perf_counter()
    if case.backend not in BACKENDS:
        raise ValueError(f"there is no backend {case.backend}")
    weights = weights_of(case.network, SMOKE)
    shape = (case.batch, weights.spec.in_channels, case.height, case.width)
    x = torch.from_numpy(np.random.default_rng(0).random(shape, np.float32)).to(DEVICE)
    with torch.no_grad():
        run = BACKENDS[case.backend](case, weights, x)
        ready = time.perf_counter()
        gc.collect()
        if DEVICE.type == "cuda":  # the peak is that of calls, not of compiling or of the reference
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            run.once()
        times: list[float] = []
        while len(times) < MOST_CALLS and (sum(times) < 1e3 * case.seconds or len(times) < LEAST_CALLS):
            times.append(run.once())
            if len(times) >= 5 and sum(times) > 5e3 * case.seconds:
                break
        finite = None if run.result is None else bool(np.isfinite(run.result()).all())
    peak = run.peak() if run.peak is not None else None
    if run.peak is None and DEVICE.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    device = "the processor" if DEVICE.type == "cpu" else torch.cuda.get_device_name()
    floors = floor_ms(weights.spec, case.batch, case.height, case.width, device)
    median = float(np.median(times))
    return {
        "workload": case.workload,
        "backend": case.backend,
        "precision": case.precision,
        "batch": case.batch,
        "height": case.height,
        "width": case.width,
        "median_ms": round(median, 4),
        "p95_ms": round(float(np.percentile(times, 95)), 4),
        "peak_mib": None if peak is None else round(peak, 1),
        "floor_ms": round(floors["floor_ms"], 4),
        "device": device,
        "variant": case.variant,
        "share": round(floors["floor_ms"] / median, 3),
        "min_ms": round(min(times), 4),
        "calls": len(times),
        "timer": "wall clock" if SMOKE else "CUDA events, input and output on the device",
        "finite": finite,
        "prepare_s": round(ready - began, 2),
        **{k: round(v, 6 if "l2" in k else 1) if isinstance(v, float) else v for k, v in run.extra.items()},
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if DEVICE.type == "cuda":
        torch.cuda.init()
    for line in sys.stdin:
        try:
            answer = measure(Case(**json.loads(line)))
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]}
        print(json.dumps(answer), file=answers, flush=True)
        torch._dynamo.reset()
        gc.collect()
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
