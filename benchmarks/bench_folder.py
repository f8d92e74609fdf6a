"""How fast are whole folders, files in and files out? The rows of docs/design/pipeline.md.

    python benchmarks/bench_folder.py [--seconds 150] [--count 24] [--only WORDS] [--again WORDS] [--list] [--smoke]
                       [--output FOLDER]

Makes JPEGs and PNGs of 4000x3000 and 1200x900 pixels (dead leaves with noise), restores each folder through the
pipeline of `restort`, and the JPEGs beside it by a plain loop of PyTorch and Pillow. Also measures one array in and
out. Needs no photographs. Writes FOLDER/folder.json after every case; a later run continues it.

--count    pictures of a folder
--smoke    small pictures on any computer: tries the script, measures nothing
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Failed, Record, Records, common_arguments, matching, number, run_cases

from restort.profiling.folder_bench import EAGER, eager_loop, measure
from restort.profiling.machine import machine

DENOISE, UPSCALE = "restormer-small-denoise", "elan-light-x4"
LARGE, SMALL = (3000, 4000), (900, 1200)  # height, width
SMOKE = "--smoke" in sys.argv
CALLS = 7  # of an array
PEER_S = 25.0  # of a plain loop


@dataclass(frozen=True)
class Case:
    """`how` is 'pipeline', 'eager loop' or 'array'; formats are of the files read and written, '' for arrays."""

    model: str
    size: tuple[int, int]
    how: str
    read: str = ""
    written: str = ""

    @property
    def workload(self) -> str:
        files = f" {self.read} to {self.written}" if self.read else " uint8 array to array"
        return f"{self.model} {self.size[1]}x{self.size[0]}{files}"

    def __str__(self) -> str:
        return f"{self.workload}, {self.how}"

    @property
    def key(self) -> Record:
        return {"workload": self.workload, "how": self.how}


def cases() -> list[Case]:
    """Return the cases, the most important first."""
    pipelines = [
        Case(DENOISE, LARGE, "pipeline", "jpg", "jpg"),
        Case(UPSCALE, SMALL, "pipeline", "jpg", "jpg"),
        Case(UPSCALE, SMALL, "pipeline", "png", "png"),
        Case("restormer-small-photo", LARGE, "pipeline", "jpg", "jpg"),  # what `denoise` runs without options
        Case("elan-photo-x4", SMALL, "pipeline", "jpg", "jpg"),  # and `upscale`, for JPEGs
    ]
    arrays = [Case(DENOISE, LARGE, "array"), Case(UPSCALE, SMALL, "array")]
    return [*pipelines, *arrays, *(Case(c.model, c.size, EAGER, c.read, c.written) for c in pipelines[:2])]


class Bench:
    """Folders of pictures, and the models that are loaded."""

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count
        self.models: dict[str, Any] = {}

    def model(self, name: str) -> Any:
        import restort

        if name not in self.models:
            start = time.perf_counter()
            self.models[name] = restort.load(name, offline=True), time.perf_counter() - start
        return self.models[name][0]

    def folder(self, size: tuple[int, int], suffix: str) -> Path:
        """Return a folder of `count` pictures, made where it is not there yet."""
        folder = self.root / f"{size[1]}x{size[0]}-{suffix}"
        if not folder.exists():
            folder.mkdir()
            first = picture(size, 0)
            for i in range(self.count):  # shifted copies: other bytes, and as much detail
                save(np.roll(first, (37 * i, 91 * i), (0, 1)), folder / f"{i:02}.{suffix}")
        return folder

    def measure(self, case: Case, left: float) -> Record:
        model = self.model(case.model)
        loaded = {"load_seconds": round(self.models[case.model][1], 3)}
        if case.how == "array":
            return arrays(model, case) | loaded | {"machine": machine()}
        folder = self.folder(case.size, case.read)
        options = {"suffix": f".{case.written}", "workload": case.workload}
        if case.how == "pipeline":
            return measure(model, folder, **options) | loaded
        record = eager_loop(model, folder, **options, seconds=min(PEER_S, left))
        if record is None:
            raise Failed("PyTorch is not installed")
        if record["error"] is not None:
            raise Failed(record["error"])
        return record


def picture(size: tuple[int, int], seed: int) -> Any:
    """(H, W, 3) uint8: dead leaves, mirrored from a part of 1.2 megapixels at most, and noise of sigma 10."""
    from restort.profiling.synthetic import dead_leaves

    height, width = (min(edge, most) for edge, most in zip(size, SMALL, strict=True))
    part = np.rint(255 * dead_leaves(height, width, seed=seed)).transpose(1, 2, 0)
    whole = np.pad(part, ((0, size[0] - height), (0, size[1] - width), (0, 0)), "symmetric")
    noise = np.random.default_rng(seed).standard_normal(whole.shape, np.float32)
    return np.clip(np.rint(whole + 10 * noise), 0, 255).astype(np.uint8)


def save(pixels: Any, path: Path) -> None:
    from PIL import Image

    options = {"quality": 92} if path.suffix == ".jpg" else {"compress_level": 1}
    Image.fromarray(pixels).save(path, **options)


def arrays(model: Any, case: Case) -> Record:
    """Time calls of the model with a uint8 array, and the network alone by the device's events."""
    image = picture(case.size, 0)
    times = []
    for i in range(CALLS + 1):
        start = time.perf_counter()
        made = model(image)
        if i:
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    layout = model.tile_layout(*case.size)
    timer = model.timer(np.zeros((1, model.spec.in_channels, *layout.tile_shape), np.float32))
    alone = None
    if timer is not None:
        timer()
        alone = layout.count * statistics.median(timer() for _ in range(CALLS)) / 1000
    return {
        "model": model.name,
        "backend": model.backend,
        "precision": model.precision,
        "seconds": seconds,
        "megapixels": made.shape[0] * made.shape[1] / 1e6,
        "megapixels_per_second": made.shape[0] * made.shape[1] / 1e6 / seconds,
        "device_seconds": alone,
        "times_the_device": alone and seconds / alone,
    }


def describe(record: Record) -> str:
    text = f"{number(record['megapixels_per_second'])} MP/s"
    if record.get("shares"):
        parts = {**record["shares"], "device": record["device_busy"]}
        text += ", " + ", ".join(
            f"{n} {100 * share:.0f} %" for n, share in parts.items() if share is not None
        )
    if record.get("times_the_device"):
        text += f", {record['times_the_device']:.2f} times the device's own time"
    return text


def main() -> int:
    global LARGE, SMALL
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    common_arguments(parser, RESULTS / "speed", seconds=150)
    parser.add_argument("--count", type=int, default=24, help="pictures of a folder (default: 24)")
    parser.add_argument("--smoke", action="store_true", help="small pictures: tries the script")
    args = parser.parse_args()
    if SMOKE:
        LARGE, SMALL = (60, 80), (36, 48)
    every = cases()
    if args.list:
        print("\n".join(map(str, every)))
        return 0
    records = Records(args.output / "folder.json")
    root = Path(tempfile.mkdtemp(prefix="restort-folders-"))
    try:
        bench = Bench(root, args.count)
        return run_cases(
            matching(every, args.only),
            records,
            bench.measure,
            describe,
            seconds=args.seconds,
            again=matching(every, args.again) if args.again else (),
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
