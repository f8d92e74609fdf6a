"""Where does the time of a network go? Every launch by itself, against the limits of the GPU.

    python benchmarks/profile_kernels.py [--only restormer-720x1280] [--precision fp16] [--batch 1] [--set NAME=VALUE]
                       [--no-overlap] [--by kernel|label|launch] [--list] [--output FILE]

Each different launch is repeated in a CUDA graph of its own and timed by CUDA's events; a launch that occurs several
times (the blocks of a level) is timed once. Its roofline is the larger of its products at 700 TFLOP/s and its bytes at
the measured memory rate. Arrays that fit into the L2 stay there between repetitions, so the sum may be below the time
of the whole network; both are shown, with the relative L2 error against PyTorch in float32 on smooth noise, and whether
20 runs leave the same bits.

--only        words of the five workloads, or names of others, such as restormer-1080x1920
--set         an option of the network's planner, such as fused_blocks=no; such runs are printed, and kept with --output
--no-overlap  no kernel begins before the one before it has ended
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, Record, Records, about, cuda_events, graph_ms, median, rounded
from workloads import NETWORKS, TENSOR_CORES, WORKLOADS, bytes_per_s, name_of, weights_of, workload_of

RUNS = 20


def different(launches: list[Any]) -> list[list[Any]]:
    """Launches of the same kernel over the same sizes, together."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for launch in launches:
        found[launch.variant(), tuple(launch.sizes.items()), launch.grid].append(launch)
    return list(found.values())


def instance_of(
    weights: Any, precision: str, shape: tuple[int, int, int], options: dict[str, Any], overlap: bool
) -> Any:
    """A pass ready to run, with smooth noise at its input, as pictures are smooth."""
    import torch

    from restort.backends.fused.architectures import planner_of
    from restort.backends.fused.instances import Instance
    from restort.backends.fused.networks import TYPES

    spec, dtype, device = weights.spec, TYPES[precision], torch.device("cuda:0")
    module: Any = planner_of(spec)
    packed = module.pack(weights, dtype).to(device)

    def planned() -> Any:
        made = module.plan(packed, spec, *shape, dtype, device, **options)
        if not overlap:
            made.launches = [one_by_one(launch) for launch in made.launches]
        return made

    instance = Instance(planned, device, print)
    n, channels, height, width = instance.input.shape
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, -(-height // 8), -(-width // 8), generator=noise)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    image += 0.02 * torch.randn(image.shape, generator=noise)
    with instance.lock, instance.on_stream():
        instance.input.copy_(image)
    instance.finish()
    return instance


def one_by_one(launch: Any) -> Any:
    if "OVERLAP" not in launch.constants:
        return launch
    return replace(launch, constants={**launch.constants, "OVERLAP": 0})


def checked(instance: Any, weights: Any) -> Record:
    """The error of the output against PyTorch in float32, a picture at a time, and how many numbers runs differ in."""
    import torch

    from restort.backends.fused.networks import PlainNetwork

    def run() -> Any:
        with instance.lock, instance.on_stream():
            instance.launch()
        instance.finish()
        return instance.output

    first = run().clone()
    differs = max(int((run() != first).sum()) for _ in range(RUNS))
    reference = PlainNetwork(weights, torch.device("cuda:0"))
    error = norm = 0.0
    for x, y in zip(instance.input, first, strict=True):
        wanted = reference.run_tensor(x[None], False)[0][0].double()
        error += float((y.double() - wanted).square().sum())
        norm += float(wanted.square().sum())
    return {"relative_l2": rounded((error / norm) ** 0.5, 3), "runs_differ_in": differs}


def profile(workload: str, precision: str, batch: int, options: dict[str, Any], overlap: bool) -> Record:
    import torch

    network, height, width = workload_of(workload)
    weights = weights_of(network)
    instance = instance_of(weights, precision, (batch, height, width), options, overlap)
    device = torch.cuda.get_device_name()
    check = checked(instance, weights)
    with instance.lock, instance.on_stream():
        whole = median([cuda_events(instance.launch) for _ in range(21)])
    steps = [timed(same, bytes_per_s(device)) for same in different(instance.launches)]
    steps.sort(key=lambda step: -step["total_ms"])
    return {
        **check,
        "device": device,
        "whole_ms": round(whole, 4),
        "sum_ms": round(sum(step["total_ms"] for step in steps), 4),
        "launches": len(instance.launches),
        "workspace_mib": round(instance.bytes / 2**20, 1),
        "steps": steps,
    }


def timed(same: list[Any], rate: float) -> Record:
    first = same[0]
    ms = graph_ms(first)
    roofline = 1e3 * max(first.flops / TENSOR_CORES, first.moved / rate)
    constants = {k: v if isinstance(v, (int, bool, float)) else str(v) for k, v in first.constants.items()}
    return {
        "kernel": first.name,
        "label": first.label,
        "count": len(same),
        "grid": list(first.grid),
        "warps": first.warps,
        "stages": first.stages,
        "ms": round(ms, 5),
        "total_ms": round(ms * len(same), 4),
        "roofline_ms": round(roofline * len(same), 4),
        "gb_per_s": round(first.moved / ms / 1e6, 1),
        "tflops": round(first.flops / ms / 1e9, 1),
        "sizes": dict(first.sizes),
        "constants": constants,
    }


def table(record: Record, by: str) -> str:
    """A line for each kernel, label or launch, the longest first."""
    groups: dict[str, list[Record]] = defaultdict(list)
    names: dict[str, Callable[[Record], str]] = {
        "kernel": lambda step: step["kernel"],
        "label": lambda step: step["label"].rsplit(".", 1)[0],
        "launch": lambda step: f"{step['kernel']} {step['label']}",
    }
    for step in record["steps"]:
        groups[names[by](step)].append(step)
    lines = [
        f"{record['workload']} x{record['batch']} {record['precision']}{record['options']}: "
        f"{record['whole_ms']:.3f} ms, {record['sum_ms']:.3f} summed; error {record.get('relative_l2', 0):.1e}"
    ]
    for name, steps in sorted(groups.items(), key=lambda item: -sum(s["total_ms"] for s in item[1])):
        total, roofline = (sum(s[key] for s in steps) for key in ("total_ms", "roofline_ms"))
        lines.append(
            f"  {name[:52]:52} {sum(s['count'] for s in steps):4} x  {total:8.3f} ms "
            f"{100 * total / record['sum_ms']:5.1f} %  roofline {roofline:7.3f} ({roofline / total:4.0%})  "
            f"{steps[0]['gb_per_s']:7.0f} GB/s {steps[0]['tflops']:6.1f} TFLOP/s"
        )
    return "\n".join(lines)


def wanted(only: str | None) -> list[str]:
    """The workloads whose name has one of the words, then words that are names of others."""
    words = (only or "").split(",")
    usual = [name for name in map(name_of, WORKLOADS) if any(word in name for word in words)]
    others = [word for word in words if word.rpartition("-")[0] in NETWORKS]
    return list(dict.fromkeys(usual + others))


def option(text: str) -> tuple[str, Any]:
    """'fused_blocks=no' -> ('fused_blocks', False)."""
    name, _, value = text.partition("=")
    known = {"yes": True, "no": False}
    return name, known[value] if value in known else int(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="words or names of workloads, separated by commas")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--set", type=option, nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--no-overlap", action="store_true")
    parser.add_argument("--by", choices=("kernel", "label", "launch"), default="kernel")
    parser.add_argument("--list", action="store_true", help="print the workloads and measure nothing")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.list:
        print("\n".join(wanted(args.only)))
        return 0
    usual = args.batch == 1 and not args.set and not args.no_overlap
    records = Records(args.output or (RESULTS / "speed" / "h100_kernels.json" if usual else None))
    options, failed = dict(args.set), 0
    import torch

    for workload in wanted(args.only):
        text = (
            "".join(f", {name}={value}" for name, value in options.items()) + ", no overlap" * args.no_overlap
        )
        key = {"workload": workload, "precision": args.precision, "batch": args.batch, "options": text}
        try:
            with torch.no_grad():
                found = profile(workload, args.precision, args.batch, options, not args.no_overlap)
        except Exception as error:
            failed += 1
            records.fail(key, f"{type(error).__name__}: {error}")
            print(f"{workload}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        print(table(records.add(key, found | about()), args.by), flush=True)
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
