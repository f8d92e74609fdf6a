"""How fast is every CPU backend beside eager PyTorch? Into results/speed/cpu.json.

    python benchmarks/bench_cpu.py [--threads 2] [--rounds 7] [--only elan-light|restormer] [--list] [--output FILE]

The peer is the network in float32 as its authors wrote it (peers.py). Rounds are interleaved (peer, then each backend,
again and again), so that whatever else the machine does falls on all of them alike; every time is that of one call
with NumPy arrays in and out. Takes about six minutes on two cores. Needs the extras `openvino` and `torch`. ELAN-light
has trained weights where ../shared has them, and then its PSNR-Y on Set5 is recorded, too.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from harness import RESULTS, SHARED, Record, Records, about, common_arguments, matching, median, percentile
from workloads import weights_of

ELAN_FILE = SHARED / "weights" / "elan_light_x4_friedricelab.safetensors"
PEER = ("eager", "fp32")
RUNS = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("torch", "fp32"),
    ("torch", "bf16"),
)
WARM = 3  # calls before timing: libraries compile and allocate, OpenVINO fixes a shape that comes back


@dataclass(frozen=True)
class Case:
    """All backends on one workload."""

    network: str
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.network}-{self.height}x{self.width}"

    def weights(self) -> Any:
        from restort.weights.checkpoint import load_weights

        if self.network == "elan-light-x4" and ELAN_FILE.is_file():
            return load_weights(ELAN_FILE)
        return weights_of(self.network)


CASES = (Case("elan-light-x4", 192, 320), Case("restormer", 256, 256))


def picture(channels: int, height: int, width: int) -> np.ndarray:
    """(1, C, H, W) float32 in [0, 1]: shades, edges and a little noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / 64
    waves = 0.2 * np.sin(3 * x + y) + 0.1 * np.cos(5 * x * y)
    shades = 0.5 + waves + 0.1 * np.sign(np.sin(9 * x) * np.cos(7 * y))
    planes = [shades + 0.02 * rng.standard_normal(shades.shape) for _ in range(channels)]
    return np.clip(np.stack(planes)[None], 0, 1).astype(np.float32)


def measure(case: Case, threads: int, rounds: int) -> list[Record]:
    """One record per backend and precision, the eager peer first."""
    import torch
    from peers import Eager

    from restort.backends.registry import create

    weights = case.weights()
    spec = weights.spec
    x = picture(spec.in_channels, case.height, case.width)
    peer = Eager(weights.state, spec)

    def eager(x: np.ndarray) -> np.ndarray:
        y: np.ndarray = (peer(torch.from_numpy(x * np.float32(spec.value_range))) / spec.value_range).numpy()
        return y

    runners: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {PEER: eager}
    for backend, precision in RUNS:
        runners[backend, precision] = create(weights, backend, precision, threads=threads)
    torch.set_num_threads(threads)
    reference = eager(x)
    errors = {}
    for key, run in runners.items():
        for _ in range(1 if key == PEER else WARM):
            y = run(x)
        errors[key] = float(np.mean((y - reference).astype(np.float64) ** 2))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, run in runners.items():
            start = time.perf_counter()
            run(x)
            times[key].append(1000 * (time.perf_counter() - start))
    peer_ms = median(times[PEER])
    return [
        {
            "workload": f"{weights.path.stem} {case.height}x{case.width}",
            "backend": backend,
            "precision": precision,
            "architecture": spec.architecture,
            "batch": 1,
            "height": case.height,
            "width": case.width,
            "median_ms": round(median(taken), 1),
            "p95_ms": round(percentile(taken, 0.95), 1),
            "min_ms": round(min(taken), 1),
            "rounds": rounds,
            "speedup_vs_eager": round(peer_ms / median(taken), 2),
            "psnr_vs_eager_db": round(-10 * math.log10(mse), 1)
            if (mse := errors[backend, precision])
            else None,
        }
        for (backend, precision), taken in times.items()
    ]


def set5(threads: int) -> dict[str, float]:
    """PSNR-Y in dB (8 bits, 4 pixels cropped) of the trained ELAN-light x4 on Set5, per backend and precision."""
    from restort.backends.registry import create
    from restort.evaluation.metrics import psnr_y
    from restort.imaging.decode import read
    from restort.tiling.padding import pad_to_multiple
    from restort.weights.checkpoint import load_weights

    weights, found = load_weights(ELAN_FILE), {}
    folder = SHARED / "data" / "test" / "set5"
    for backend, precision in RUNS:
        runner, scores = create(weights, backend, precision, threads=threads), []
        for path in sorted((folder / "HR").glob("*.png")):
            low = read(folder / "LR_bicubic" / "X4" / f"{path.stem}x4.png").pixels.astype(np.float32) / 255
            x = pad_to_multiple(low.transpose(2, 0, 1)[None], weights.spec.size_multiple)
            y = runner(np.ascontiguousarray(x))[0].transpose(1, 2, 0)
            made = np.round(np.clip(y[: low.shape[0] * 4, : low.shape[1] * 4], 0, 1) * 255)
            scores.append(psnr_y(made, read(path).pixels[: made.shape[0], : made.shape[1]], border=4))
        found[f"{backend}/{precision}"] = round(float(np.mean(scores)), 4)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, RESULTS / "speed" / "cpu.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    wanted = matching(CASES, args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    if hasattr(os, "sched_setaffinity"):  # before any library starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from restort.utils.cpu import processor_name

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    device = {"processor": processor_name(), "cores": args.threads, "load_before": load}
    records = Records(args.output)
    for case in wanted:
        for found in measure(case, args.threads, args.rounds):
            key = {name: found[name] for name in ("workload", "backend", "precision")}
            record = records.add(key, {**found, "device": device, **about()})
            print(
                f"{record['workload']:40} {record['backend']:12} {record['precision']}  "
                f"{record['median_ms']:8.1f} ms  {record['speedup_vs_eager']:5.2f}x",
                flush=True,
            )
    if ELAN_FILE.is_file() and CASES[0] in wanted:
        records.extra["set5_psnr_y_db"] = set5(args.threads)
        records.save()
        print(records.extra["set5_psnr_y_db"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
