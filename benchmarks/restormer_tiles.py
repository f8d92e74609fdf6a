"""Tile sizes of Restormer's Triton kernels on this GPU, for choosing their `tiles`:

    python benchmarks/restormer_tiles.py [--size 720x1280 368x560 256x256] [--kernels norm_expand ...] [--output FILE]

A pass of the official network is planned once for each way to cut; every launch of the kernel that is cut, different in
its arguments, is repeated in a CUDA graph and timed by events. What does not fit the GPU is left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from gpu_workloads import weights_of
from steps import different, milliseconds

from restort.backends.fused import restormer
from restort.kernels import precompile
from restort.kernels.common import divide
from restort.kernels.conv3x3 import kernel as conv3x3
from restort.kernels.gate_project import kernel as gate_project
from restort.kernels.machine import machine
from restort.kernels.norm_expand import kernel as norm_expand
from restort.kernels.pointwise import kernel as pointwise

Cut = tuple[int, ...]
MODULES = {
    "norm_expand": norm_expand,
    "conv3x3": conv3x3,
    "pointwise": pointwise,
    "gate_project": gate_project,
}
CUTS: dict[str, list[Cut]] = {  # pixels, columns, warps, stages; gate_project: pairs of rows, hidden channels, warps
    "norm_expand": [
        (64, 64, 8, 2), (64, 64, 8, 3), (64, 64, 4, 2), (64, 128, 8, 2), (64, 128, 4, 2), (128, 64, 8, 2),
        (128, 64, 8, 3), (128, 128, 8, 2), (32, 64, 4, 2), (32, 64, 4, 3), (32, 128, 4, 2),
    ],
    "conv3x3": list(product((64, 128), (64, 128), (4, 8), (3, 4))),
    "pointwise": list(product((64, 128), (64, 96, 128), (4, 8), (3,))),
    "gate_project": [(1, 64, 4, 1), (1, 64, 8, 1), (2, 64, 8, 1), (1, 32, 8, 1), (2, 32, 8, 1), (1, 32, 4, 1)],
}  # fmt: skip


def cut(kernel: str, choice: Cut, usual: Callable[..., Any]) -> Callable[..., dict[str, int]]:
    """The kernel's `tiles` with this choice."""

    def tiles(*args: Any, **options: Any) -> dict[str, int]:
        found: dict[str, int] = dict(usual(*args, **options))
        bm, bn, warps, stages = choice
        if kernel == "gate_project":
            return {**found, "PAIRS": bm, "BF": bn, "warps": warps}
        if kernel == "norm_expand":
            rows, pixels, processors, attends = args[1], args[2], args[4], len(args) > 5 and args[5]
            share = steps = divide(rows, bn)
            while (
                share > 1 and divide(pixels, bm) * divide(steps, share) < (1 if attends else 2) * processors
            ):
                share = divide(share, 2)
            return {"BM": bm, "BN": bn, "COLUMNS": share * bn, "warps": warps, "stages": min(share, stages)}
        bn = 1 << (bn - 1).bit_length() if bn & bn - 1 else bn
        return {**found, "BM": bm, "BN": min(bn, max(16, found["BN"] * 2)), "warps": warps, "stages": stages}

    return tiles


@contextmanager
def replaced(kernel: str, choice: Cut | None) -> Any:
    module: Any = MODULES[kernel]
    usual = module.tiles
    if choice is not None:
        module.tiles = cut(kernel, choice, usual)
    try:
        yield
    finally:
        module.tiles = usual


def main() -> None:
    parser = argparse.ArgumentParser(description="tile sizes of Restormer's Triton kernels")
    parser.add_argument("--size", nargs="*", default=["720x1280", "256x256"])
    parser.add_argument("--kernels", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda:0")
    capability, _ = machine(device)
    weights = weights_of("restormer")
    packed = restormer.pack(weights, torch.float16).to(device)
    rows = []
    for size in args.size:
        height, width = map(int, size.split("x"))

        def plan(height: int = height, width: int = width) -> Any:
            return restormer.plan(packed, weights.spec, 1, height, width, torch.float16, device)

        for kernel in args.kernels:
            plans = []
            for choice in [None, *CUTS[kernel]]:
                with replaced(kernel, choice):
                    plans.append((choice, plan().launches))
            chosen = [
                (choice, [same for same in different(launches).values() if kernel in module_of(same[0])])
                for choice, launches in plans
            ]
            jobs = precompile.missing([same[0] for _, groups in chosen for same in groups], capability)
            precompile.precompile(list(jobs.values()))
            best: dict[str, list[tuple[float, str]]] = defaultdict(list)
            for choice, groups in chosen:
                for same in groups:
                    first = same[0]
                    try:
                        ms = milliseconds(first)
                    except Exception as trouble:
                        print(f"{size} {kernel} {choice} {first.label}: {type(trouble).__name__}", flush=True)
                        continue
                    place = f"{first.name} {list(first.tensors.values())[-1].shape[-1]}" + (
                        f" at {first.sizes.get('P', first.sizes.get('H'))}"
                    )
                    best[place].append((ms, str(choice)))
                    rows.append(
                        {
                            "size": size, "kernel": first.name, "label": first.label, "choice": choice,
                            "place": place, "count": len(same), "ms": round(ms, 5),
                            "tflops": round(first.flops / ms / 1e9, 1),
                        }
                    )  # fmt: skip
            for place, found in sorted(best.items()):
                usual = [ms for ms, choice in found if choice == "None"]
                print(
                    f"{size} {place:44} now {1e3 * min(usual, default=0):8.1f} us   "
                    + "  ".join(f"{choice} {1e3 * ms:.1f}" for ms, choice in sorted(found)[:4]),
                    flush=True,
                )
            if args.output:
                args.output.write_text(json.dumps(rows, indent=1) + "\n")
            torch.cuda.empty_cache()


def module_of(launch: Any) -> str:
    return str(getattr(getattr(launch.kernel, "fn", launch.kernel), "__module__", ""))


if __name__ == "__main__":
    main()
