"""Where the time of a pass goes: every launch by itself, against the limits of the GPU, summed by kernel and place.

    python benchmarks/steps.py [--only restormer-720x1280] [--precision fp16] [--by kernel|label|launch] [--output FILE]

Each different launch is repeated in a CUDA graph of its own and timed by CUDA's events; a launch that occurs several
times (the blocks of a level) is timed once. Its floor is the larger of its products at 700 TFLOP/s and its bytes at
2.95 TB/s (4.2 on an H200). Arrays that fit into the L2 stay there between repetitions, so that the sum may be below the
time of the whole pass; both are shown. Results go to results/h100_steps.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_workloads import BYTES_PER_S, NETWORKS, TASKS, TFLOPS, weights_of

from restort.backends.fused.networks import FusedNetwork, timed
from restort.kernels.launch import Launch

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


def steps(workload: str, precision: str) -> dict[str, Any]:
    network, size = workload.rsplit("-", 1)
    height, width = map(int, size.split("x"))
    weights = weights_of(network)
    device = torch.device("cuda:0")
    fused = FusedNetwork(weights, precision, device, 1, 1 << 40, print)
    instance = fused.instances.get((1, height, width))
    name = torch.cuda.get_device_name()
    rate = next(value for part, value in BYTES_PER_S.items() if part in name)
    with instance.lock, instance.on_stream():
        whole = sorted(timed(instance.launch) for _ in range(21))[10]
    rows = []
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
    lines = [
        f"{result['workload']} {result['precision']}: {result['whole_ms']:.3f} ms, {result['sum_ms']:.3f} summed"
    ]
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


def main() -> None:
    parser = argparse.ArgumentParser(description="the launches of a pass, each by itself")
    parser.add_argument("--only", help="words of workloads, separated by commas")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--by", choices=("kernel", "label", "launch"), default="kernel")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "h100_steps.json")
    args = parser.parse_args()
    results = []
    for network, height, width in TASKS:
        workload = f"{network}-{height}x{width}"
        if args.only and not any(word in workload for word in args.only.split(",")):
            continue
        assert network in NETWORKS
        try:
            with torch.no_grad():
                results.append(steps(workload, args.precision))
            print(table(results[-1], args.by), flush=True)
        except Exception as error:
            print(f"{workload}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"results": results}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
