"""What does `--tile exact` (strips) cost, and how near is it to the whole picture? CPU or GPU.

    python benchmarks/bench_exact.py cpu [--sizes 1024x1024 2048x2048] [--large 12000x8000] [--threads 2]
    python benchmarks/bench_exact.py gpu [--sizes 512x768 1024x1024] [--large 8000x12000] [--weights FILE]

Sizes are HEIGHTxWIDTH; --large runs by strips only. Inputs have noise of sigma 25. Times are of one call after a small
one to warm up.

cpu   into results/speed/exact_strips_cpu.json. Every run is a process of its own, so that its peak resident memory is
      known, from a Picture (uint8) to a Picture; the whole picture only where it fits into the memory. `agreement`
      compares exact and tiled results with the whole picture's. Photographs of ../shared, continued by mirroring.
gpu   into results/speed/exact_strips_gpu.json. Relative L2 of the strips in fp32 and fp16 against the whole picture in
      float32 (PyTorch, on the GPU) and against the whole fused fp16 run; the most memory that tensors took. Inputs are
      dead leaves.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, SHARED, Record, Records, Worker, matching, rounded, run_cases, serve
from workloads import size

MODEL = "restormer-small-denoise"
SHIPPED = ROOT / "src" / "restort" / "weights" / "shipped" / f"{MODEL}.safetensors"
SIGMA = 25
WHOLE_BYTES_PER_PIXEL = 4000  # more than measured, so that a run never pushes others out of the memory
KODAK = tuple(f"test/kodak24/kodim{i:02d}.png" for i in (1, 13, 23))
LARGER = ("train/unsplash_e8e9b659.jpg", "train/unsplash_21ad055a.jpg")
SIZES = {"cpu": ((1024, 1024), (2048, 2048)), "gpu": ((512, 768), (520, 776), (1024, 1024), (2048, 2048))}
LIMIT = 7200.0


@dataclass(frozen=True)
class Case:
    """`mode` is 'whole', 'exact' or, for the picture of `picture`, 'agreement'."""

    where: str
    mode: str
    precision: str = "fp32"
    height: int = 0
    width: int = 0
    picture: str = ""

    @property
    def key(self) -> Record:
        if self.mode == "agreement":
            return {"picture": Path(self.picture).name}
        return {
            "workload": f"{MODEL}-{self.height}x{self.width}",
            "backend": "torch" if self.where == "cpu" else "fused",
            "precision": self.precision,
            "tile": "none" if self.mode == "whole" else "exact",
        }

    def __str__(self) -> str:
        if self.mode == "agreement":
            return f"agreement {self.picture}"
        return f"{self.mode} {self.height}x{self.width} {self.precision}"


def cases(where: str, sizes: list[tuple[int, int]], large: list[tuple[int, int]]) -> list[Case]:
    if where == "gpu":
        return [Case(where, "exact", p, h, w) for h, w in [*sizes, *large] for p in ("fp16", "fp32")]
    found = [Case(where, mode, height=h, width=w) for h, w in sizes for mode in ("whole", "exact")]
    found += [Case(where, "exact", height=h, width=w) for h, w in large]
    return found + [Case(where, "agreement", picture=name) for name in (*KODAK, *LARGER)]


# On the CPU, in a worker


def noisy(path: Path, height: int | None = None, width: int | None = None) -> Any:
    """A photograph, mirrored up to a size, with noise that is clipped to 8 bit as a camera would."""
    from restort.imaging.decode import read
    from restort.imaging.picture import Picture
    from restort.tiling.padding import reflect_index

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
        rows += SIGMA * random.standard_normal(rows.shape, np.float32)
        made[a : a + 64] = np.clip(np.rint(rows), 0, 255)
    return Picture(made)


def open_model(tile: Any, threads: int) -> Any:
    from restort.inference.model import load

    return load(MODEL, backend="torch", precision="fp32", tile=tile, threads=threads, offline=True)


def timed(case: Case, threads: int) -> Record:
    """One run in this process."""
    from restort.profiling.machine import peak_rss
    from restort.utils.memory import available_memory

    photograph = SHARED / "data" / KODAK[0]
    picture = noisy(photograph, case.height, case.width)
    with open_model(None if case.mode == "whole" else "exact", threads) as model:
        model(noisy(photograph, 64, 64))
        before = peak_rss() or 0
        start, used = time.perf_counter(), time.process_time()
        model(picture)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        files = 0
        if case.mode == "exact":
            from restort.backends.strips.network import stored_bytes

            stored = stored_bytes(model.spec, 1, -(-case.height // 8) * 8, -(-case.width // 8) * 8)
            files = stored if stored > available_memory() // 2 else 0
    return {
        "batch": 1,
        "height": case.height,
        "width": case.width,
        "median_ms": round(1000 * seconds, 1),
        "processor_ms": round(1000 * used, 1),
        "peak_rss_mib": round((peak_rss() or 0) / 2**20),
        "rss_before_mib": round(before / 2**20),
        "temporary_files_mib": round(files / 2**20),
    }


def agreement(path: Path, threads: int) -> Record:
    """Exact and tiled results of one picture against the whole one's."""
    from restort.evaluation.metrics import psnr

    x = noisy(path).to_unit(3)
    results = {}
    for tile in (None, "exact", 256, 512):
        with open_model(tile, threads) as model:
            results[tile] = model.run(x)
    whole = results[None]

    def eight(y: Any) -> Any:
        return np.rint(np.clip(y[0].transpose(1, 2, 0), 0, 1) * 255).astype(int)

    found: Record = {"height": x.shape[2], "width": x.shape[3]}
    for tile in ("exact", 256, 512):
        difference = results[tile] - whole
        found[f"tile {tile}"] = {
            "relative_l2": float(np.linalg.norm(difference) / np.linalg.norm(whole)),
            "max_abs": float(np.abs(difference).max()),
            "psnr_db": round(psnr(np.clip(results[tile], 0, 1), np.clip(whole, 0, 1), peak=1.0), 2),
            "max_steps_of_8_bit": int(np.abs(eight(results[tile]) - eight(whole)).max()),
        }
    return found


def on_cpu(case: Case, args: argparse.Namespace, left: float) -> Record:
    """In a worker; a whole picture that may not fit is not begun."""
    from restort.utils.cpu import processor_name
    from restort.utils.memory import available_memory

    needed = WHOLE_BYTES_PER_PIXEL * case.height * case.width
    if case.mode == "whole" and needed > available_memory() * 0.8:
        raise MemoryError(f"the whole picture may need {needed / 2**30:.0f} GiB")
    worker = Worker(Path(__file__), "cpu", "--threads", str(args.threads))
    try:
        found = worker.ask(asdict(case), min(LIMIT, left))
    finally:
        worker.close()
    return {**found, "device": f"{processor_name()}, {args.threads} threads"}


# On a GPU


def leaves(channels: int, height: int, width: int) -> np.ndarray:
    """One tile of dead leaves, repeated in mirror image, and noise of its own everywhere."""
    from restort.profiling.synthetic import dead_leaves

    tile = dead_leaves(min(height, 1024), min(width, 1024), channels, 0)
    rows, columns = (
        np.abs((np.arange(n) + m) % (2 * m) - m) % m for n, m in zip((height, width), tile.shape[1:])
    )
    random = np.random.default_rng(0)
    made = np.empty((1, channels, height, width), np.float32)
    for top in range(0, height, 256):
        band = tile[:, rows[top : top + 256]][:, :, columns]
        noise = random.standard_normal(band.shape, np.float32) * np.float32(SIGMA / 255)
        made[0, :, top : top + 256] = np.clip(band + noise, 0, 1)
    return made


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2, a channel at a time: these arrays are large."""
    total = error = 0.0
    for x, y in zip(a[0], b[0]):
        error += float(np.sum((x - y).astype(np.float64) ** 2))
        total += float(np.sum(y.astype(np.float64) ** 2))
    return rounded((error / total) ** 0.5, 6)


def on_gpu(case: Case, args: argparse.Namespace, left: float) -> Record:
    import torch

    from restort.backends.fused.networks import PlainNetwork
    from restort.backends.fused.runner import FusedRunner
    from restort.backends.strips.feature_maps import temporary_folder
    from restort.profiling.machine import peak_rss
    from restort.utils.memory import available_memory
    from restort.weights.checkpoint import load_weights

    torch.set_grad_enabled(False)
    weights = load_weights(args.weights)
    x = leaves(weights.spec.in_channels, case.height, case.width)
    references: dict[str, np.ndarray] = {}
    if (case.height, case.width) in args.sizes:
        references["whole fp32"] = PlainNetwork(weights, torch.device("cuda")).run(x)[0]
        references["fused fp16"] = FusedRunner(weights, "fp16")(x)
        torch.cuda.empty_cache()
    runner, folder = FusedRunner(weights, case.precision), temporary_folder()
    for _ in runner.exact(x[:, :, :64, :64], memory_bytes=1 << 30, folder=folder):
        pass
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = np.empty_like(x[:, : weights.spec.out_channels])
    for top, band in runner.exact(x, memory_bytes=available_memory() // 2, folder=folder):
        result[:, :, top : top + band.shape[2]] = band
    seconds = time.perf_counter() - start
    runner.close()
    return {
        "height": case.height,
        "width": case.width,
        "seconds": round(seconds, 2),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "host_peak_mib": round((peak_rss() or 0) / 2**20),
        "finite": bool(np.isfinite(result).all()),
        "relative_l2": {name: distance(result, wanted) for name, wanted in references.items()},
        "device": torch.cuda.get_device_name(),
    }


def describe(record: Record) -> str:
    if "picture" in record:
        return f"exact {record['tile exact']['relative_l2']:.1e}  tiles of 512 {record['tile 512']['relative_l2']:.1e}"
    seconds = record.get("seconds") or record["median_ms"] / 1000
    memory = record.get("peak_mib", record.get("peak_rss_mib"))
    return f"{seconds:9.2f} s  {memory} MiB  {record.get('relative_l2', '')}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", choices=("cpu", "gpu"), nargs="?", default="cpu")
    parser.add_argument("--sizes", nargs="*", type=size, metavar="HxW")
    parser.add_argument("--large", nargs="*", type=size, default=[], metavar="HxW", help="by strips only")
    parser.add_argument("--only", help="cases whose name has one of these words")
    parser.add_argument("--again", help="measure such cases once more")
    parser.add_argument("--threads", type=int, default=2, help="cpu: of PyTorch")
    parser.add_argument("--weights", type=Path, default=SHIPPED, help="gpu: a Restormer")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--list", action="store_true", help="print the cases and measure nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:

        def answer(question: Record) -> Record:
            case = Case(**question)
            if case.mode == "agreement":
                return agreement(SHARED / "data" / case.picture, args.threads)
            return timed(case, args.threads)

        return serve(answer)
    args.sizes = list(SIZES[args.where]) if args.sizes is None else args.sizes
    wanted = matching(cases(args.where, args.sizes, args.large), args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    measure = on_cpu if args.where == "cpu" else on_gpu
    records = Records(args.output or RESULTS / "speed" / f"exact_strips_{args.where}.json")
    again = matching(wanted, args.again) if args.again else ()
    failed = run_cases(wanted, records, lambda case, left: measure(case, args, left), describe, again=again)
    far = [r for r in records.records if r.get("relative_l2", {}).get("whole fp32", 0) >= 1e-3]
    return min(1, failed + len(far))


if __name__ == "__main__":
    sys.exit(main())
