"""Speed of every CPU backend against the eager PyTorch peer, into results/speed/cpu.json.

    python benchmarks/cpu_speed.py [--threads 2] [--rounds 7] [--only elan|restormer] [--output FILE]

Rounds are interleaved (peer, then each backend, again and again), so that whatever else the machine does falls
on all of them alike; every time is that of one call with NumPy arrays in and out. Takes about six minutes on
two cores. Needs the extras `openvino` and `torch`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import Eager, official_restormer, random_state

from restort.backends.registry import create, library_version
from restort.models.spec import ElanSpec, Spec
from restort.utils.cpu import default_threads, processor_name
from restort.weights.checkpoint import Weights, load_weights

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
ELAN_FILE = SHARED / "weights" / "elan_light_x4_friedricelab.safetensors"
RUNS = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("torch", "fp32"),
    ("torch", "bf16"),
)
WARM = 3  # calls before timing: libraries compile and allocate, OpenVINO fixes a shape that comes back


def elan_light() -> Weights:
    """Trained ELAN-light x4 where it is at hand, else random weights of the same shape."""
    if ELAN_FILE.is_file():
        return load_weights(ELAN_FILE)
    spec = ElanSpec(4, 24, 60, 1, 3, (4, 8, 16), 255.0, 2)
    return of_random(random_state(spec), spec, "random-elan-light-x4")


def restormer() -> Weights:
    return of_random(*official_restormer(), "random-restormer")


def of_random(state: dict[str, np.ndarray], spec: Spec, name: str) -> Weights:
    """Weights that come from no file; the digest is of the numbers, because graphs are cached by it."""
    digest = hashlib.sha256(b"".join(value.tobytes() for value in state.values())).hexdigest()
    return Weights(state, spec, {}, digest, Path(name))


WORKLOADS: dict[str, tuple[Callable[[], Weights], int, int]] = {
    "elan": (elan_light, 192, 320),
    "restormer": (restormer, 256, 256),
}


def picture(channels: int, height: int, width: int) -> np.ndarray:
    """(1, C, H, W) float32 in [0, 1]: shades, edges and a little noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / 64
    shades = (
        0.5 + 0.2 * np.sin(3 * x + y) + 0.1 * np.cos(5 * x * y) + 0.1 * np.sign(np.sin(9 * x) * np.cos(7 * y))
    )
    planes = [shades + 0.02 * rng.standard_normal(shades.shape) for _ in range(channels)]
    return np.clip(np.stack(planes)[None], 0, 1).astype(np.float32)


def measure(name: str, threads: int, rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record per backend and precision, the eager peer first."""
    make, height, width = WORKLOADS[name]
    weights = make()
    spec = weights.spec
    x = picture(spec.in_channels, height, width)
    peer = Eager(weights.state, spec)

    def eager(x: np.ndarray) -> np.ndarray:
        y: np.ndarray = (peer(torch.from_numpy(x * np.float32(spec.value_range))) / spec.value_range).numpy()
        return y

    runners: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {("eager", "fp32"): eager}
    for backend, precision in RUNS:
        runners[backend, precision] = create(weights, backend, precision, threads=threads)
    torch.set_num_threads(threads)
    reference = eager(x)
    errors = {}
    for key, run in runners.items():
        for _ in range(WARM if key[0] != "eager" else 1):
            y = run(x)
        errors[key] = y - reference
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, run in runners.items():
            start = time.perf_counter()
            run(x)
            times[key].append(1000 * (time.perf_counter() - start))
    eager_ms = float(np.median(times["eager", "fp32"]))
    records = []
    for (backend, precision), taken in times.items():
        mse = float(np.mean(errors[backend, precision].astype(np.float64) ** 2))
        median = float(np.median(taken))
        records.append(
            {
                "workload": f"{weights.path.stem} {height}x{width}",
                "architecture": spec.architecture,
                "backend": backend,
                "precision": precision,
                "batch": 1,
                "height": height,
                "width": width,
                "median_ms": round(median, 1),
                "p95_ms": round(float(np.percentile(taken, 95)), 1),
                "min_ms": round(min(taken), 1),
                "rounds": rounds,
                "speedup_vs_eager": round(eager_ms / median, 2),
                "psnr_vs_eager_db": round(-10 * math.log10(mse), 1) if mse else None,
            }
        )
        say(f"{name:10} {backend:12} {precision}  {median:8.1f} ms  {eager_ms / median:5.2f}x")
    return records


def set5(threads: int) -> dict[str, float]:
    """PSNR-Y in dB (8 bits, 4 pixels cropped) of the trained ELAN-light x4 on Set5, per backend and precision."""
    from restort.evaluation.metrics import psnr_y
    from restort.imaging.decode import read
    from restort.tiling.padding import pad_to_multiple

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


def main() -> None:
    parser = argparse.ArgumentParser(description="speed of the CPU backends against eager PyTorch")
    parser.add_argument("--threads", type=int, default=min(2, default_threads()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=sorted(WORKLOADS))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "speed" / "cpu.json")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before any library starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    common = {
        "device": {"processor": processor_name(), "cores": args.threads, "load_before": load},
        "versions": {n: library_version(n) for n in ("restort", "onnxruntime", "openvino", "torch", "numpy")}
        | {"python": platform.python_version()},
        "command": "python benchmarks/cpu_speed.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    records: list[dict[str, Any]] = []
    for name in [args.only] if args.only else WORKLOADS:
        records += [record | common for record in measure(name, args.threads, args.rounds, print)]
    result: dict[str, Any] = {"records": records}
    if ELAN_FILE.is_file():
        result["set5_psnr_y_db"] = set5(args.threads)
        print(result["set5_psnr_y_db"])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(f".{args.output.name}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    temporary.replace(args.output)


if __name__ == "__main__":
    main()
