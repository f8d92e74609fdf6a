"""Where the time of a pass goes: every launch by itself, against the limits of the GPU, summed by kernel and place.

    python benchmarks/steps.py [--only restormer-720x1280] [--precision fp16] [--batch 1] [--streamed yes|no] [--error]
                       [--by kernel|label|launch] [--output FILE]

Each different launch is repeated in a CUDA graph of its own and timed by CUDA's events; a launch that occurs several
times (the blocks of a level) is timed once. Its floor is the larger of its products at 700 TFLOP/s and its bytes at
2.95 TB/s (4.2 on an H200). Arrays that fit into the L2 stay there between repetitions, so that the sum may be below the
time of the whole pass; both are shown.

--only      words of the five workloads; a whole name, such as restormer-1080x1920, need not be one of them
--streamed  streaming kernels on all levels of a Restormer, or on none, instead of where they are faster
--error     also the relative L2 error of the output against PyTorch in float32 on the same GPU, on smooth noise
--output    otherwise results/speed/h100_steps.json; runs with --batch or --streamed are only printed
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_workloads import BYTES_PER_S, NETWORKS, TASKS, TFLOPS, weights_of

from restort.backends.fused.instances import Instance
from restort.backends.fused.networks import TYPES, PlainNetwork, timed
from restort.kernels.launch import Launch
from restort.weights.checkpoint import Weights

HERE = Path(__file__).resolve().parent
REPEATS = 20


def milliseconds(run: Callable[[], None], repeats: int = REPEATS) -> float:
    """Of one run, the median of five graphs of `repeats`."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    graph.replay()
    return sorted(timed(graph.replay) for _ in range(5))[2] / repeats


def different(launches: list[Launch]) -> dict[Any, list[Launch]]:
    """Launches of the same kernel over the same sizes."""
    found: dict[Any, list[Launch]] = defaultdict(list)
    for launch in launches:
        found[launch.variant(), tuple(launch.sizes.items()), launch.grid].append(launch)
    return found


def instance_of(
    weights: Weights, precision: str, shape: tuple[int, int, int], device: torch.device, streamed: bool | None
) -> Instance:
    """A pass ready to run, with smooth noise at its input, as pictures are smooth."""
    spec, dtype = weights.spec, TYPES[precision]
    module = importlib.import_module(f"restort.backends.fused.{spec.architecture}")
    options = {} if streamed is None else {"streamed": streamed}
    packed = module.pack(weights, dtype).to(device)
    made = Instance(lambda: module.plan(packed, spec, *shape, dtype, device, **options), device, print)
    n, channels, height, width = made.input.shape
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, -(-height // 8), -(-width // 8), generator=noise)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    image += 0.02 * torch.randn(image.shape, generator=noise)
    with made.lock, made.on_stream():
        made.input.copy_(image)
    made.finish()
    return made


def error_of(instance: Instance, weights: Weights, device: torch.device) -> float:
    """The relative L2 error of the output against PyTorch in float32, a picture at a time."""
    with instance.lock, instance.on_stream():
        instance.launch()
    instance.finish()
    reference = PlainNetwork(weights, device)
    error = norm = 0.0
    for x, y in zip(instance.input, instance.output, strict=True):
        want = reference.run_tensor(x[None], False)[0][0].double()
        error += float((y.double() - want).square().sum())
        norm += float(want.square().sum())
    return float((error / norm) ** 0.5)


def steps(
    workload: str, precision: str, batch: int = 1, streamed: bool | None = None, error: bool = False
) -> dict[str, Any]:
    network, size = workload.rsplit("-", 1)
    height, width = map(int, size.split("x"))
    weights = weights_of(network)
    device = torch.device("cuda:0")
    instance = instance_of(weights, precision, (batch, height, width), device, streamed)
    more = {"error_l2": error_of(instance, weights, device)} if error else {}
    name = torch.cuda.get_device_name()
    rate = next(value for part, value in BYTES_PER_S.items() if part in name)
    with instance.lock, instance.on_stream():
        whole = sorted(timed(instance.launch) for _ in range(21))[10]
    rows: list[dict[str, Any]] = []
    for same in different(instance.launches).values():
        first = same[0]
        ms = milliseconds(first)
        floor = 1e3 * max(first.flops / TFLOPS, first.moved / rate)
        rows.append(
            {
                "kernel": first.name,
                "label": first.label,
                "count": len(same),
                "grid": list(first.grid),
                "warps": first.warps,
                "stages": first.stages,
                "ms": round(ms, 5),
                "total_ms": round(ms * len(same), 4),
                "floor_ms": round(floor * len(same), 4),
                "gb_per_s": round(first.moved / ms / 1e6, 1),
                "tflops": round(first.flops / ms / 1e9, 1),
                "sizes": dict(first.sizes),
                "constants": {
                    k: v if isinstance(v, (int, bool, float)) else str(v) for k, v in first.constants.items()
                },
            }
        )
    rows.sort(key=lambda row: -row["total_ms"])
    return {
        "workload": workload,
        "precision": precision,
        "batch": batch,
        "streamed": {None: "auto", True: "yes", False: "no"}[streamed],
        **more,
        "device": name,
        "whole_ms": round(whole, 4),
        "sum_ms": round(sum(row["total_ms"] for row in rows), 4),
        "steps": rows,
    }


def table(result: dict[str, Any], by: str) -> str:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["steps"]:
        label = f"{row['kernel']} {row['label']}" if by == "launch" else row[by]
        groups[label.rsplit(".", 1)[0] if by == "label" else label].append(row)
    batch = f" x{result['batch']}" if result["batch"] > 1 else ""
    lines = [
        f"{result['workload']}{batch} {result['precision']}: {result['whole_ms']:.3f} ms, "
        f"{result['sum_ms']:.3f} summed"
    ]
    if "error_l2" in result:
        lines.append(f"  relative L2 error {result['error_l2']:.2e}")
    for name, rows in sorted(groups.items(), key=lambda item: -sum(r["total_ms"] for r in item[1])):
        total, floor = (sum(r[n] for r in rows) for n in ("total_ms", "floor_ms"))
        best = rows[0]
        lines.append(
            f"  {name[:52]:52} {sum(r['count'] for r in rows):4} x  {total:8.3f} ms "
            f"{100 * total / result['sum_ms']:5.1f} %"
            f"  floor {floor:7.3f}  share {floor / total if total else 0:.2f}  "
            f"{best['gb_per_s']:7.0f} GB/s {best['tflops']:6.1f} TFLOP/s"
        )
    return "\n".join(lines)


def wanted(only: str | None) -> list[str]:
    """Those of the five workloads that hold one of the words, then words that are names of others."""
    usual = [f"{network}-{height}x{width}" for network, height, width in TASKS]
    words = (only or "").split(",")
    others = [word for word in words if any(re.fullmatch(rf"{n}-\d+x\d+", word) for n in NETWORKS)]
    return list(dict.fromkeys([w for w in usual if any(word in w for word in words)] + others))


def main() -> None:
    parser = argparse.ArgumentParser(description="the launches of a pass, each by itself")
    parser.add_argument("--only", help="words or names of workloads, separated by commas")
    parser.add_argument("--precision", choices=list(TYPES), default="fp16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--streamed", choices=("auto", "yes", "no"), default="auto", help="of a Restormer")
    parser.add_argument("--error", action="store_true", help="also against PyTorch in float32")
    parser.add_argument("--by", choices=("kernel", "label", "launch"), default="kernel")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = []
    for workload in wanted(args.only):
        streamed = None if args.streamed == "auto" or "restormer" not in workload else args.streamed == "yes"
        try:
            with torch.no_grad():
                results.append(steps(workload, args.precision, args.batch, streamed, args.error))
            print(table(results[-1], args.by), flush=True)
        except Exception as error:
            print(f"{workload}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    output = args.output
    if output is None and args.batch == 1 and args.streamed == "auto":
        output = HERE / "results" / "speed" / "h100_steps.json"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"results": results}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
