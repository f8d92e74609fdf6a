"""`--tile exact` on a GPU against the untiled run, and a very large picture, into results/speed/exact_strips_gpu.json.

    python benchmarks/exact_gpu.py [--weights FILE] [--sizes 512x768 1024x1024] [--large 8000x12000] [--output FILE]

HEIGHTxWIDTH. For every size: relative L2 error of the strips in fp32 and fp16 against the whole picture in float32 (by
PyTorch, on the GPU) and against the untiled fused fp16 run; seconds of one call (NumPy arrays in and out) after a small
one to warm up; the most memory that tensors took. Inputs are dead leaves with noise of sigma 25.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restort.backends.fused.networks import PlainNetwork
from restort.backends.fused.runner import FusedRunner
from restort.backends.strips.feature_maps import temporary_folder
from restort.errors import RestortError
from restort.profiling.synthetic import dead_leaves
from restort.utils.memory import available_memory
from restort.weights.checkpoint import load_weights

HERE = Path(__file__).resolve().parent
SMALL = HERE.parent / "src" / "restort" / "weights" / "shipped" / "restormer-small-denoise.safetensors"


def picture(channels: int, height: int, width: int) -> np.ndarray:
    """One tile of leaves, repeated in mirror image, and noise of its own everywhere."""
    leaves = dead_leaves(min(height, 1024), min(width, 1024), channels, 0)
    rows, columns = (
        np.abs((np.arange(n) + m) % (2 * m) - m) % m for n, m in zip((height, width), leaves.shape[1:])
    )
    random = np.random.default_rng(0)
    made = np.empty((1, channels, height, width), np.float32)
    for top in range(0, height, 256):
        band = leaves[:, rows[top : top + 256]][:, :, columns]
        noise = random.standard_normal(band.shape, np.float32) * np.float32(25 / 255)
        made[0, :, top : top + 256] = np.clip(band + noise, 0, 1)
    return made


def distance(a: np.ndarray, b: np.ndarray) -> float:
    total = error = 0.0
    for x, y in zip(a[0], b[0]):
        error += float(np.sum((x - y).astype(np.float64) ** 2))
        total += float(np.sum(y.astype(np.float64) ** 2))
    return (error / total) ** 0.5


def exact(weights: Any, precision: str, x: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    runner = FusedRunner(weights, precision)
    folder = temporary_folder()
    for _ in runner.exact(x[:, :, :64, :64], memory_bytes=1 << 30, folder=folder):
        pass
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = np.empty_like(x[:, : weights.spec.out_channels])
    for top, band in runner.exact(x, memory_bytes=available_memory() // 2, folder=folder):
        result[:, :, top : top + band.shape[2]] = band
    seconds = time.perf_counter() - start
    runner.close()
    return result, {
        "seconds": round(seconds, 2),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "host_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="strips on a GPU")
    parser.add_argument("--weights", type=Path, default=SMALL)
    parser.add_argument("--sizes", nargs="*", default=["512x768", "520x776", "1024x1024", "2048x2048"])
    parser.add_argument("--large", nargs="*", default=["8000x12000"])
    parser.add_argument("--output", type=Path, default=HERE / "results" / "speed" / "exact_strips_gpu.json")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    weights = load_weights(args.weights)
    records: list[dict[str, Any]] = []
    about = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "command": "python benchmarks/exact_gpu.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for size in [*args.sizes, *args.large]:
        height, width = map(int, size.split("x"))
        x = picture(weights.spec.in_channels, height, width)
        references: dict[str, np.ndarray] = {}
        if size in args.sizes:
            references["whole fp32"] = PlainNetwork(weights, torch.device("cuda")).run(x)[0]
            references["fused fp16"] = FusedRunner(weights, "fp16")(x)
            torch.cuda.empty_cache()
        for precision in ("fp16", "fp32"):
            try:
                y, found = exact(weights, precision, x)
            except (RestortError, RuntimeError) as error:
                print(f"{size} {precision}: {error}", file=sys.stderr, flush=True)
                continue
            record = {
                "workload": f"{args.weights.stem}-{size}",
                "backend": "fused",
                "precision": precision,
                "tile": "exact",
                "height": height,
                "width": width,
                **found,
                "finite": bool(np.isfinite(y).all()),
                "relative_l2": {name: distance(y, want) for name, want in references.items()},
            }
            records.append(record | about)
            print(record, flush=True)
            args.output.write_text(json.dumps({"records": records}, indent=1) + "\n", "utf-8")
    return 0 if records and all(r["relative_l2"].get("whole fp32", 0) < 1e-3 for r in records) else 1


if __name__ == "__main__":
    sys.exit(main())
