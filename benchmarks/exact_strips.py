"""Restormer by strips (`--tile exact`) against the whole and against tiles, into results/speed/exact_strips_cpu.json.

    python benchmarks/exact_strips.py [--sizes 1024x1024 2048x2048] [--large 12000x8000] [--threads 2]

Every run is a process of its own, so that its peak resident memory is known; the whole picture is run only where
it fits into the memory. Times are of one call, from a Picture (uint8) to a Picture, after a small picture to warm
up. Pictures are photographs of ../shared continued by mirroring, with noise of sigma 25. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from restort.backends.registry import library_version
from restort.evaluation.metrics import psnr
from restort.imaging.decode import read
from restort.imaging.picture import Picture
from restort.inference.model import Model, load
from restort.tiling.padding import reflect_index
from restort.utils.cpu import default_threads, processor_name
from restort.utils.memory import available_memory

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
MODEL = "restormer-small-denoise"
SIGMA = 25
WHOLE_BYTES_PER_PIXEL = 4000  # more than measured, so that a run never pushes others out of the memory
KODAK = tuple(f"test/kodak24/kodim{i:02d}.png" for i in (1, 13, 23))
LARGER = ("train/unsplash_e8e9b659.jpg", "train/unsplash_21ad055a.jpg")


def noisy(path: Path, height: int | None = None, width: int | None = None) -> Picture:
    """A photograph, mirrored up to a size, with noise that is clipped to 8 bit as a camera would."""
    pixels = read(path).pixels
    h, w = pixels.shape[:2]
    height, width = height or h, width or w
    random = np.random.default_rng(0)
    columns = reflect_index(w, max(w, width))[:width]
    made = np.empty((height, width, 3), np.uint8)
    for a in range(0, height, 64):  # a few rows at a time: the peak memory is to be that of the network
        rows = pixels[reflect_index(h, max(h, height))[a : min(a + 64, height)]][:, columns].astype(
            np.float32
        )
        made[a : a + 64] = np.clip(
            np.rint(rows + SIGMA * random.standard_normal(rows.shape, np.float32)), 0, 255
        )
    return Picture(made)


def open_model(tile: Any, threads: int) -> Model:
    return load(MODEL, backend="torch", precision="fp32", tile=tile, threads=threads, offline=True)


def timed(mode: str, height: int, width: int, threads: int) -> dict[str, Any]:
    """One run in this process."""
    import psutil

    picture = noisy(SHARED / "data" / KODAK[0], height, width)
    with open_model(None if mode == "whole" else "exact", threads) as model:
        model(noisy(SHARED / "data" / KODAK[0], 64, 64))
        before = peak_mib()
        start, used = time.perf_counter(), time.process_time()
        shown = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal shown
            if done / total >= shown + 0.05:
                shown = done / total
                elapsed = time.perf_counter() - start
                print(
                    f"{mode} {width}x{height}: {shown:.0%} after {elapsed:.0f} s", file=sys.stderr, flush=True
                )

        model(picture, progress=progress)
        seconds = time.perf_counter() - start
        load_average = psutil.getloadavg()[0]
        files = 0
        if mode == "exact":
            from restort.backends.strips.network import stored_bytes

            stored = stored_bytes(model.spec, 1, -(-height // 8) * 8, -(-width // 8) * 8)  # type: ignore[arg-type]
            files = stored if stored > available_memory() // 2 else 0
    return {
        "workload": f"{MODEL}-{height}x{width}",
        "backend": "torch",
        "precision": "fp32",
        "tile": "none" if mode == "whole" else "exact",
        "batch": 1,
        "height": height,
        "width": width,
        "runs": 1,
        "median_ms": round(1000 * seconds, 1),
        "processor_ms": round(1000 * (time.process_time() - used), 1),
        "peak_rss_mib": round(peak_mib()),
        "rss_before_mib": round(before),
        "temporary_files_mib": round(files / 2**20),
        "load_average": round(load_average, 2),
    }


def peak_mib() -> float:
    """The most resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def agreement(path: Path, threads: int) -> dict[str, Any]:
    """Exact and tiled results of one picture against the whole one's."""
    x = noisy(path).to_unit(3)
    results = {}
    for tile in (None, "exact", 256, 512):
        with open_model(tile, threads) as model:
            results[tile] = model.run(x)
    whole = results[None]

    def eight(y: Any) -> Any:
        return np.rint(np.clip(y[0].transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)

    found: dict[str, Any] = {"picture": path.name, "height": x.shape[2], "width": x.shape[3]}
    for tile in ("exact", 256, 512):
        difference = results[tile] - whole
        found[f"tile {tile}"] = {
            "relative_l2": float(np.linalg.norm(difference) / np.linalg.norm(whole)),
            "max_abs": float(np.abs(difference).max()),
            "psnr_db": round(psnr(np.clip(results[tile], 0, 1), np.clip(whole, 0, 1), peak=1.0), 2),
            "max_steps_of_8_bit": int(np.abs(eight(results[tile]).astype(int) - eight(whole)).max()),
        }
    return found


def child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)  # type: ignore[no-any-return]


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (height, width)."""
    width, height = text.split("x")
    return int(height), int(width)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", type=size, default=[(1024, 1024), (2048, 2048)], metavar="WxH")
    parser.add_argument("--large", nargs="*", type=size, default=[], metavar="WxH", help="by strips only")
    parser.add_argument("--no-agreement", action="store_true")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--output", type=Path, default=HERE / "results" / "speed" / "exact_strips_cpu.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--agree", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = ["--threads", str(args.threads)]
    if args.one:
        print(json.dumps(timed(args.one[0], int(args.one[1]), int(args.one[2]), args.threads)))
        return 0
    if args.agree:
        print(json.dumps(agreement(args.agree, args.threads)))
        return 0
    record = {
        "device": f"{processor_name()}, {args.threads} threads",
        "versions": {name: library_version(name) for name in ("torch", "numpy", "restort")},
        "command": "python benchmarks/exact_strips.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    found = json.loads(args.output.read_text()) if args.output.is_file() else {"records": [], "agreement": []}
    for height, width in [*args.sizes, *args.large]:
        for mode in ("whole", "exact"):
            needed = WHOLE_BYTES_PER_PIXEL * height * width
            if mode == "whole" and ((height, width) in args.large or needed > available_memory() * 0.8):
                print(
                    f"whole {width}x{height}: left out, it may need {needed / 2**30:.0f} GiB", file=sys.stderr
                )
                continue
            made = child("--one", mode, str(height), str(width), *threads) | record
            print(json.dumps(made), file=sys.stderr)
            same = ("workload", "tile")
            found["records"] = [r for r in found["records"] if any(r[k] != made[k] for k in same)] + [made]
            args.output.write_text(json.dumps(found, indent=1) + "\n")
    if not args.no_agreement:
        paths = [SHARED / "data" / name for name in (*KODAK, *LARGER)]
        found["agreement_command"] = record["command"]
        found["agreement"] = [child("--agree", str(path), *threads) for path in paths if path.is_file()]
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
