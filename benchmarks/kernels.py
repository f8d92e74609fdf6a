"""Fused passes on the GPU at hand: right or not, where their time goes launch by launch, and how long they take whole.

    python benchmarks/kernels.py [--network restormer,small,elan-x4,elan-light-x4] [--size 256x256,720x1280]
                                 [--batch 1] [--dtype fp16] [--streamed auto|yes|no] [--output FILE]

For every network and size: the relative L2 error of a pass against PyTorch in float32 (TF32 off) on the same GPU, on
smooth noise; every different launch repeated in a CUDA graph (what fits into the L2 stays there), summed by kernel and
by place, with its share of the time, of the products and of the bytes, against the larger of products at 700 TFLOP/s
and bytes at 3.0 TB/s (H200: 4.2); the whole pass as a CUDA graph, median of 20. `--streamed` overrides which levels of
a Restormer run in streaming kernels. A case that fails is reported and the next one begins, in a process of its own if
the GPU needs it. Takes up to 20 seconds a case when nothing has been compiled yet.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from gpu_workloads import NETWORKS, weights_of
from steps import different, milliseconds

from restort.backends.fused.passes import Pass
from restort.kernels.common import roofs
from restort.kernels.precompile import missing, note, precompile, precompile_cuda
from restort.models.build import build
from restort.models.checkpoint import Weights, load_weights

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "src" / "restort" / "zoo" / "weights" / "restormer-small-denoise.safetensors"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description="fused passes, launch by launch")
    parser.add_argument(
        "--network", default="restormer", help=f"small, {', '.join(NETWORKS)}; commas between"
    )
    parser.add_argument("--size", default="256x256", help="height x width; commas between")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16")
    parser.add_argument("--streamed", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument(
        "--no-reference", action="store_true", help="for pictures that PyTorch has no memory for"
    )
    parser.add_argument("--output", type=Path, default=Path("kernels.json"))
    args = parser.parse_args()
    cases = [(n, s) for n in args.network.split(",") for s in args.size.split(",")]
    results: Rows = json.loads(args.output.read_text())["results"] if args.output.is_file() else []
    for i, (network, size) in enumerate(cases):
        result: dict[str, Any] = {"network": network, "size": size, "batch": args.batch, "dtype": args.dtype}
        results.append(result | {"streamed": args.streamed})
        try:
            with torch.no_grad():
                for part in measure(network, size, args):
                    results[-1] |= part
                    write(args.output, results)
        except Exception as error:
            traceback.print_exc()
            results[-1]["error"] = f"{type(error).__name__}: {error}"[:500]
            write(args.output, results)
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except Exception:  # the context is lost, with all that comes after
                restart(args, cases[i + 1 :])
                return


def restart(args: argparse.Namespace, cases: list[tuple[str, str]]) -> None:
    """The remaining cases, each in a process of its own; they add to the same file."""
    options = [f"--batch={args.batch}", f"--dtype={args.dtype}", f"--streamed={args.streamed}"]
    options += [f"--output={args.output}"] + ["--no-reference"] * args.no_reference
    for network, size in cases:
        subprocess.run(
            [sys.executable, __file__, f"--network={network}", f"--size={size}", *options], check=False
        )


def write(path: Path, results: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1) + "\n")


def measure(network: str, size: str, args: argparse.Namespace) -> Any:
    """Parts of a result as they come."""
    device, dtype, start = torch.device("cuda:0"), DTYPES[args.dtype], time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {network} {size} {args.dtype}: {text}", flush=True)

    height, width = map(int, size.split("x"))
    weights = load_weights(SMALL) if network == "small" else weights_of(network)
    spec = weights.spec
    module = importlib.import_module(f"restort.backends.fused.{spec.architecture}")
    options: dict[str, Any] = {}
    if spec.architecture == "restormer" and args.streamed != "auto":
        options["streamed"] = args.streamed == "yes"
    packed = module.pack(weights, dtype).to(device)
    made: Pass = module.plan(packed, spec, args.batch, height, width, dtype, device, **options)
    say(f"{len(made.launches)} launches, {made.workspace.bytes / 2**20:.0f} MiB")
    major, minor = torch.cuda.get_device_capability()
    wanted = missing(made.launches, major * 10 + minor)
    precompile(list(wanted.values()))
    precompile_cuda(made.launches, major * 10 + minor)
    say(f"{len(wanted)} Triton kernels were compiled")
    run(made, args.batch)
    note(list(wanted))
    say("ran")
    if not args.no_reference:
        error = check(made, weights, device)
        say(f"relative L2 error {error:.2e}" + ("" if error < 1e-2 else "   <---- WRONG"))
        yield {"error_l2": error}
    whole = median_pass(made)
    yield {"whole_ms": whole, "launches": len(made.launches), "workspace_mib": made.workspace.bytes >> 20}
    rate, flops = roofs(torch.cuda.get_device_name())
    floor = 1e3 * max(made.flops / flops, made.moved / rate)
    say(
        f"{whole:.3f} ms as a graph; {made.flops / 1e12:.2f} TFLOP, {made.moved / 1e9:.1f} GB: floor {floor:.2f} ms"
    )
    rows = [row(same, rate, flops) for same in different(made.launches).values()]
    rows.sort(key=lambda one: -one["total_ms"])
    yield {"steps": rows}
    for key in ("kernel", "place"):
        print(table(rows, key, whole, made), flush=True)
    print(table(rows, "what", whole, made, 14), flush=True)


def run(made: Pass, batch: int) -> None:
    """Once on smooth noise, as pictures are smooth."""
    torch.manual_seed(0)
    n, channels, height, width = made.input.shape
    coarse = torch.rand(n, channels, height // 8, width // 8, device=made.input.device)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    made.input.copy_(image + 0.02 * torch.randn_like(image))
    made.run()
    torch.cuda.synchronize()


def check(made: Pass, weights: Weights, device: Any) -> float:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    net = build(weights.spec, weights.state).to(device)
    scale = weights.spec.value_range
    error = norm = 0.0
    for image, found in zip(made.input, made.output, strict=True):
        expected = net(image[None] * scale)[0] / scale
        error += float((found.double() - expected.double()).square().sum())
        norm += float(expected.double().square().sum())
        del expected
    torch.cuda.empty_cache()
    return float((error / norm) ** 0.5)


def median_pass(made: Pass) -> float:
    """Of 20 replays of the whole pass as a graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.run()
    times = []
    for _ in range(24):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[4:])[10]


def row(same: list[Any], rate: float, flops: float) -> dict[str, Any]:
    first = same[0]
    ms = milliseconds(first)
    places = sorted({launch.label.split(".")[0] for launch in same})
    return {
        "kernel": first.name,
        "place": "+".join(places),
        "what": f"{first.name} {'+'.join(places)} {'x'.join(map(str, first.grid))} {first.warps}w{first.stages}s",
        "count": len(same),
        "ms": ms,
        "total_ms": ms * len(same),
        "floor_ms": 1e3 * max(first.flops / flops, first.moved / rate) * len(same),
        "flops": first.flops * len(same),
        "moved": first.moved * len(same),
        "grid": list(first.grid),
        "constants": {k: v if isinstance(v, int) else str(v) for k, v in first.constants.items()},
    }


def table(rows: Rows, key: str, whole: float, made: Pass, most: int = 99) -> str:
    groups: dict[str, Rows] = defaultdict(list)
    for one in rows:
        groups[one[key]].append(one)
    total = sum(one["total_ms"] for one in rows)
    lines = [f"  by {key}: {total:.3f} ms summed, {whole:.3f} ms whole   (ms | % time flop bytes | rate)"]
    ordered = sorted(groups.items(), key=lambda item: -sum(one["total_ms"] for one in item[1]))
    for name, some in ordered[:most]:
        ms, floor, flops, moved, count = (
            sum(one[part] for one in some) for part in ("total_ms", "floor_ms", "flops", "moved", "count")
        )
        lines.append(
            f"  {name[-64:]:64} x{count:3} {ms:8.3f} | {100 * ms / total:4.1f} {100 * flops / made.flops:4.1f} "
            f"{100 * moved / made.moved:4.1f} | {1e3 * ms / count:7.1f} us {moved / ms / 1e6:5.0f} GB/s "
            f"{flops / ms / 1e9:5.0f} TFLOP/s {100 * floor / ms:3.0f} % of the roof"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
