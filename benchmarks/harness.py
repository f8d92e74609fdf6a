"""What every benchmark does: cases, worker processes, timing, and records that survive an interruption.

A script lists its cases, measures one case in one function, and hands both to `run_cases`. The records of a script are
one JSON file, {"records": [...], "failures": [...]}, written after every case: an interrupted run continues where it
stopped, a case that fails is recorded as a failure and ends nothing. Every record carries its key, the device, the
versions, the command and the date.

Nothing here imports PyTorch or Triton before a case is measured, so that `--help` and `--list` work on any computer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from restort.utils.files import write_bytes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = ROOT.parent / "shared"
RESULTS = HERE / "results"
PACKAGES = (
    *("restort", "torch", "triton", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "onnx"),
    *("cuda-bindings", "tensorrt", "tensorrt-rtx"),
)
DASH = "–"
REPEATS = 20  # of a launch in one CUDA graph
Record = dict[str, Any]


class Case(Protocol):
    """One measurement: `key` names its record among those of the file, str() names it to a person."""

    @property
    def key(self) -> Record: ...


class Failed(Exception):
    """A case that could not be measured, in one sentence."""


# Records


def about() -> Record:
    """Versions, command and date of a record."""
    return {
        "versions": versions(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Python, the packages that are installed, and the GPU's driver where there is one."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    driver = gpu_state("driver_version")
    return found | ({"driver": driver[0]} if driver else {})


def versions_of(records: Iterable[Record]) -> list[str]:
    """'torch 2.11.0', a line for each package that the records name; several versions with a slash between."""
    found: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return [f"{name} {' / '.join(sorted(found[name]))}" for name in (*PACKAGES, "driver") if name in found]


def gpu_state(fields: str) -> list[str]:
    """Fields of nvidia-smi for the first GPU; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return [part.strip() for part in lines[0].split(",")] if lines else []


def clocks() -> Record:
    """The GPU just after a case: MHz of the SMs and the memory, watts, degrees."""
    return dict(
        zip(
            ("sm_mhz", "memory_mhz", "watts", "celsius"),
            gpu_state("clocks.sm,clocks.mem,power.draw,temperature.gpu"),
        )
    )


class Records:
    """The JSON file of a script. A file that ends in the middle is set aside, not overwritten."""

    def __init__(self, path: Path | None, *, fresh: bool = False) -> None:
        self.path = path
        self.records: list[Record] = []
        self.failures: list[Record] = []
        self.extra: Record = {}
        if path is None or fresh or not path.is_file():
            return
        try:
            held = json.loads(path.read_text("utf-8"))
        except ValueError:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            print(f"{path} is not complete JSON; moved to {aside}", file=sys.stderr)
            return
        self.records, self.failures = held.pop("records", []), held.pop("failures", [])
        self.extra = held

    def has(self, key: Record) -> bool:
        return any(same_key(record, key) for record in self.records)

    def add(self, key: Record, found: Record) -> Record:
        """Keep a record in place of an older one, and forget the case's failures."""
        record = {**key, **found}
        self.records = [r for r in self.records if not same_key(r, key)] + [record]
        self.failures = [f for f in self.failures if not same_key(f, key)]
        self.save()
        return record

    def fail(self, key: Record, error: str, **more: Any) -> None:
        self.failures = [f for f in self.failures if not same_key(f, key)]
        self.failures.append({**key, "error": error, **more})
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        held: Record = {**self.extra, "records": self.records}
        if self.failures:
            held["failures"] = self.failures
        write_json(self.path, held)


def same_key(record: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a record is of that case: fields that a record lacks count as empty."""
    return all(record.get(name, "") == value for name, value in key.items())


def write_json(path: Path, held: Any, indent: int | None = 1) -> None:
    """Write JSON atomically."""
    text = json.dumps(held, indent=indent, allow_nan=False) + "\n"
    write_bytes(path, text.encode(), overwrite=True)


# Running cases


def run_cases(
    cases: Sequence[Case],
    records: Records,
    measure: Callable[[Any, float], Record],
    describe: Callable[[Record], str],
    *,
    seconds: float = 1e9,
    again: Sequence[Any] = (),
) -> int:
    """Measure what `records` lacks, and `again`; return the number of cases that failed.

    measure   (case, seconds it may take) -> the record's fields; any exception is that case's failure.
    describe  the record in one line.
    seconds   nothing is begun less than 15 s before they are over.
    """
    end = time.monotonic() + seconds
    failed = 0
    for case in cases:
        if records.has(case.key) and case not in again:
            continue
        left = end - time.monotonic()
        if left < 15:
            print(f"time is up: {case} and the cases after it are left for the next run", flush=True)
            break
        start = time.monotonic()
        try:
            found = measure(case, left)
        except Exception as error:
            failed += 1
            took = round(time.monotonic() - start, 1)
            text = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            records.fail(case.key, " ".join(text.split())[:600], seconds=took, **about())
            print(f"{case!s:62} FAILED after {took:.0f} s: {text}", flush=True)
            continue
        record = records.add(case.key, {**found, **about()})
        print(f"{case!s:62} {describe(record)}  ({time.monotonic() - start:.0f} s)", flush=True)
    return failed


def common_arguments(parser: argparse.ArgumentParser, output: Path | None, seconds: float = 540) -> None:
    """The options that every script with cases has."""
    parser.add_argument(
        "--only", help="cases whose name has one of these words, separated by commas; a+b: both"
    )
    parser.add_argument("--again", help="measure such cases once more (words as for --only, or 'all')")
    parser.add_argument("--seconds", type=float, default=seconds, help="begin nothing after so long")
    parser.add_argument("--output", type=Path, default=output, help="the JSON file (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the cases and measure nothing")


def matching(cases: Iterable[Any], words: str | None) -> list[Any]:
    """Cases that `words` names: a whole name means that case alone."""
    every = list(cases)
    if words is None or words == "all":
        return every
    names = {str(case) for case in every}
    return [case for case in every if any(_matches(str(case), word, names) for word in words.split(","))]


def _matches(name: str, word: str, names: set[str]) -> bool:
    return name == word if word in names else all(part in name for part in word.split("+"))


# Worker processes


class Worker:
    """A process that measures cases: a JSON line to it, a JSON line back."""

    def __init__(self, script: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, question: Record, limit: float) -> Record:
        """The answer to one case. Raises Failed; after that the process is of no more use."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            raise Failed(f"no result within {limit:.0f} s") from None
        except OSError:
            line = ""
        if not line:
            raise Failed(self._last_words())
        answer: Record = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process ended with status {self.process.poll()}: {lines[-1][:400] if lines else 'no message'}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def serve(measure: Callable[[Record], Record]) -> int:
    """Be a worker: answer each line of stdin. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = measure(json.loads(line))
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


# Timing


def median(values: Sequence[float]) -> float:
    """The upper one of two middle values."""
    return sorted(values)[len(values) // 2]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as that share of them."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def rounded(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def repeated(once: Callable[[], float], seconds: float, least: int = 10, most: int = 2000) -> list[float]:
    """Milliseconds of calls for about so many seconds, after three that do not count."""
    for _ in range(3):
        once()
    times: list[float] = []
    while len(times) < most and (sum(times) < 1e3 * seconds or len(times) < least):
        times.append(once())
        if len(times) >= 5 and sum(times) > 5e3 * seconds:
            break
    return times


def wall_clock(call: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def cuda_events(call: Callable[[], Any]) -> float:
    """Milliseconds of one call on the current stream by CUDA's events."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def graph_ms(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Milliseconds of one run, the median of five replays of a CUDA graph of `repeats` runs.

    Launches one by one come 35 to 55 us apart, whatever the kernel, which hides what is shorter.
    """
    import torch

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    graph.replay()
    return median([cuda_events(graph.replay) for _ in range(5)]) / repeats


# Launches of kernels


def compile_ahead(launches: Sequence[Any], capability: int) -> dict[int, str]:
    """Compile every kernel of `launches` in processes and threads, without a GPU; {index: why it does not compile}."""
    from concurrent.futures import ThreadPoolExecutor

    from restort.kernels.precompile import default_processes, missing, note, precompile

    start = time.monotonic()
    lacking = missing(launches, capability)
    cuda = [i for i, one in enumerate(launches) if not hasattr(one.kernel, "fn")]
    failures: dict[int, str] = {}

    def build(i: int) -> None:
        try:
            launches[i].kernel.compile(launches[i].constants, capability)
        except Exception as error:
            failures[i] = " ".join(f"{type(error).__name__}: {error}".split())[:300]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        triton = pool.submit(precompile, list(lacking.values()))
        list(pool.map(build, cuda))
        count = triton.result()
    note(list(lacking))
    print(
        f"compiled {len(cuda) - len(failures)} CUDA C++ and {count} of {len(lacking)} Triton kernels in "
        f"{time.monotonic() - start:.1f} s ({default_processes()} processes)",
        flush=True,
    )
    return failures


def run_twice(launch: Any, outputs: Sequence[Any]) -> tuple[list[Any], bool]:
    """What a run leaves in `outputs`, filled with NaN before, and whether a second run leaves the same bits."""
    import torch

    seen = []
    for _ in range(2):
        for output in outputs:
            output.fill_(float("nan"))
        launch()
        seen.append([output.clone() for output in outputs])
    first, second = ([output.contiguous().view(torch.uint8) for output in run] for run in seen)
    return seen[0], all(map(torch.equal, first, second))


def relative_l2(mine: Any, wanted: Any) -> float:
    """||mine - wanted|| / ||wanted|| of two arrays or tensors, in float64."""
    import numpy as np

    if hasattr(mine, "double"):
        return float((mine.double() - wanted.double()).norm() / wanted.double().norm())
    a, b = np.asarray(mine, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# Text


def number(value: float | None, unit: str = "") -> str:
    """Three digits or so; a dash for None."""
    if value is None:
        return DASH
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}{unit}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
