"""How fast a folder is restored, files in and files out, and what its time is spent on.

`measure` runs the pipeline of `restort.inference.batch` over a folder; `eager_loop` restores the same files by a plain
loop of PyTorch and Pillow, in a process of its own (restort.profiling.eager_loop). Both give a record with the same
fields; start-up and the first picture are not part of their times.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from restort.errors import RestortError
from restort.imaging.encode import QUALITY
from restort.imaging.folder import Job, collect
from restort.inference.batch import FileResult, Options, Summary, restore_files
from restort.profiling.machine import peak_rss, provenance

if TYPE_CHECKING:
    from restort.inference.model import Model
    from restort.weights.checkpoint import Weights

Record = dict[str, Any]
LIMIT_S = 120.0
"""Seconds of the eager loop, after which it stops between two files."""
EAGER = "eager loop"
HEADS = (
    *("backend", "files", "s", "MP/s", "network %", "wait decode %", "wait encode %"),
    *("decode busy %", "encode busy %", "device busy %"),
)


def measure(
    model: Model,
    folder: Path,
    *,
    suffix: str | None = None,
    quality: int = QUALITY,
    workload: str | None = None,
) -> Record:
    """Restore the pictures below `folder` into a temporary folder, which is removed, and return the record.

    suffix     of the results, such as '.png'; None for that of each picture
    workload   the record's name for this run; None for model, folder and suffix

    The first picture is restored once before the clock starts. Raises RestortError where no picture can be restored.
    """
    with tempfile.TemporaryDirectory(prefix="restort-bench-") as made:
        jobs = _jobs(folder, Path(made), suffix)
        about = provenance()
        model.restore_file(jobs[0].source, Path(made, "first" + jobs[0].target.suffix), quality=quality)
        summary = restore_files(model, jobs, Path(made, "results"), Options(quality=quality), _Unseen())
        done = [result for result in summary.files if result.status == "done"]
        if summary.interrupted:
            raise KeyboardInterrupt
        if not done:
            raise RestortError(f"no picture of {folder} was restored: {summary.files[0].message}")
        sizes = Counter(result.size for result in done if result.size is not None)
        record = _record(model, folder, suffix, workload) | {
            **_rates(len(done), summary.megapixels, summary.seconds),
            "files": len(jobs),
            "failed": summary.count("failed"),
            "input_bytes": sum(result.source.stat().st_size for result in done),
            "output_bytes": sum(result.target.stat().st_size for result in done),
            **_shares(summary),
            **_device(model, sizes, summary.seconds),
            **about,
            **({} if model.device is None else {"device": model.device}),
        }
    peak = peak_rss()
    return record | {"peak_mib": None if peak is None else round(peak / 2**20, 1)}


def eager_loop(
    model: Model,
    folder: Path,
    *,
    suffix: str | None = None,
    quality: int = QUALITY,
    workload: str | None = None,
    seconds: float = LIMIT_S,
) -> Record | None:
    """Restore the same files by a plain loop of PyTorch; None where PyTorch is not installed.

    The loop ends after `seconds`; its record then holds fewer files. A loop that fails has an `error` and no numbers.
    """
    if find_spec("torch") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="restort-bench-") as made:
        jobs = _jobs(folder, Path(made, "results"), suffix)
        task = {
            "weights": str(_weights_file(model.weights, Path(made))),
            "files": [[str(job.source), str(job.target)] for job in jobs],
            "quality": quality,
            "seconds": seconds,
        }
        about = provenance()
        answer = _child(task, 2 * seconds + 120)
        written = [job.target for job in jobs if job.target.is_file()]
        sizes = {"output_bytes": sum(path.stat().st_size for path in written)}
    record = _record(model, folder, suffix, workload) | {"backend": EAGER, **about}
    record |= {"device": answer["device"]} if answer.get("device") else {}
    if "error" in answer:
        return record | {"precision": None, **_rates(0, 0.0, 0.0), "error": answer["error"]}
    rates = _rates(answer["files"], answer["megapixels"], answer["seconds"])
    return record | {"precision": answer["precision"], **rates, **sizes}


def _jobs(folder: Path, output: Path, suffix: str | None) -> list[Job]:
    jobs = [job for job in collect([folder], output, suffix=suffix) if job.problem is None]
    if not jobs:
        raise RestortError(f"there is no picture in {folder} that can be read; give another folder")
    return jobs


def _record(model: Model, folder: Path, suffix: str | None, workload: str | None) -> Record:
    kind = "" if suffix is None else f" to {suffix[1:]}"
    return {
        "workload": workload or f"{model.name} {folder.name}{kind}",
        "model": model.name,
        "architecture": model.spec.architecture,
        "weights_sha256": model.weights.digest,
        "backend": model.backend,
        "precision": model.precision,
        "error": None,
    }


def _rates(files: int, megapixels: float, seconds: float) -> Record:
    """Files and megapixels of results a second; megapixels count what was written."""
    rates = (files / seconds, megapixels / seconds) if files else (None, None)
    return {
        "done": files,
        "seconds": round(seconds, 4),
        "megapixels": round(megapixels, 4),
        "files_per_second": rates[0] and float(f"{rates[0]:.5g}"),
        "megapixels_per_second": rates[1] and float(f"{rates[1]:.5g}"),
    }


def _shares(summary: Summary) -> Record:
    """Seconds of the stages, the shares of the network's thread, and how busy the threads of a stage are on average."""
    stages, wall = summary.stages, summary.seconds
    seconds = {n: getattr(stages, n) for n in ("decode", "wait_decode", "network", "wait_encode", "encode")}
    mine = ("network", "wait_decode", "wait_encode")
    return {
        "stage_seconds": {name: round(value, 4) for name, value in seconds.items()},
        "shares": {name: round(seconds[name] / wall, 4) for name in mine},
        "busy": {
            "decode": round(seconds["decode"] / (wall * stages.readers), 4),
            "encode": round(seconds["encode"] / (wall * stages.writers), 4),
        },
        "readers": stages.readers,
        "writers": stages.writers,
    }


def _device(model: Model, sizes: Counter[tuple[int, int]], wall: float) -> Record:
    """Seconds that the device itself computes these pictures, by its own events, and its share of the wall time.

    None where the backend has no such clock: on processors `shares` tells the same.
    """
    total = 0.0
    for (width, height), count in sizes.items():
        layout = model.tile_layout(height, width)
        tile = np.zeros((1, model.spec.in_channels, *layout.tile_shape), np.float32)
        timer = model.timer(tile)
        if timer is None:
            return {"device_seconds": None, "device_busy": None}
        timer()
        total += count * layout.count * statistics.median(timer() for _ in range(3)) / 1000
    return {"device_seconds": round(total, 4), "device_busy": round(total / wall, 4)}


class _Unseen:
    """An observer that shows nothing."""

    def begin(self, source: Path) -> None:
        pass

    def tile(self, done: int, total: int) -> None:
        pass

    def end(self, result: FileResult) -> None:
        pass


def _weights_file(weights: Weights, folder: Path) -> Path:
    """Return the file of weights; random weights of a benchmark come from none and are written to `folder`."""
    if weights.path.is_file():
        return weights.path
    from safetensors.numpy import save_file

    path = folder / "weights.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in weights.state.items()}, path)
    return path


def _child(task: Record, limit: float) -> Record:
    command = [sys.executable, "-m", "restort.profiling.eager_loop"]
    try:
        done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"the eager loop gave no result within {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: Record = json.loads(lines[-1])
        return answer
    said = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
    named = [line for line in said if re.match(r"[\w.]*Error: ", line)]  # CUDA adds advice behind its error
    return {"error": " ".join((named or said)[-1].split())[:300]}


def table(records: Sequence[Record]) -> str:
    """Text: a line per record."""
    rows = [list(HEADS), *(_row(record) for record in records)]
    whole = [row for row in rows if len(row) == len(HEADS)]  # a failure has a sentence instead of numbers
    widths = [max(len(row[i]) for row in whole) for i in range(len(HEADS))]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(record: Record) -> list[str]:
    name = " ".join(filter(None, (record["backend"], record["precision"])))
    if record["error"] is not None:
        return [name, record["error"]]
    shares, busy = record.get("shares", {}), record.get("busy", {})
    return [
        name,
        str(record["done"]),
        f"{record['seconds']:.2f}",
        f"{record['megapixels_per_second']:.1f}",
        *(_percent(shares.get(part)) for part in ("network", "wait_decode", "wait_encode")),
        *(_percent(busy.get(part)) for part in ("decode", "encode")),
        _percent(record.get("device_busy")),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"
