"""The parent's end of a benchmark case: its process, its answers, and the record of them."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

WARM = 3  # calls after the first: libraries compile, allocate, and fix a shape that comes back
BURST_S = 0.2  # calls shorter than this are made several at a time


@dataclass(frozen=True)
class Case:
    """A backend in a precision on one array shape."""

    backend: str
    precision: str
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.backend}:{self.precision} {self.batch}x{self.height}x{self.width}"


class CaseError(Exception):
    """A case that cannot be measured, in one sentence."""


@dataclass
class Measured:
    """A case while it is measured; `times` in ms, one per call, `error` once it has failed."""

    case: Case
    times: list[float] = field(default_factory=list)
    rounds: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the case's part of a record; numbers are None where the case failed."""
        case, times = self.case, self.times if self.error is None else []
        p5, median, p95 = np.percentile(times, (5, 50, 95)) if times else (None, None, None)
        memory = self.about.get("device_peak_bytes", self.about.get("host_peak_bytes"))
        host = self.about.get("host_peak_bytes")
        return {
            "backend": case.backend,
            "precision": self.about.get("precision", case.precision),
            "batch": case.batch,
            "height": case.height,
            "width": case.width,
            "median_ms": _rounded(median),
            "p5_ms": _rounded(p5),
            "p95_ms": _rounded(p95),
            "images_per_second": _rounded(1000 * case.batch / median if median else None),
            "peak_mib": _mib(memory),
            "host_peak_mib": _mib(host),
            "create_ms": _rounded(self.about.get("create_ms")),
            "first_call_ms": _rounded(self.about.get("first_call_ms")),
            "calls": len(times),
            "rounds": self.rounds,
            "timer": self.about.get("timer"),
            "error": self.error,
        }


class Child:
    """The process of a case. It fails when its answers take more than `limit` seconds in all."""

    def __init__(self, case: Case, weights: Path, threads: int | None, limit: float) -> None:
        self.measured = Measured(case)
        self._limit, self._spent = limit, 0.0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "restort.profiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._job = {
            "weights": str(weights),
            "threads": threads,
            "warm": WARM,
            **{name: getattr(case, name) for name in ("backend", "precision", "batch", "height", "width")},
        }

    def prepare(self) -> None:
        """Load, make the first call, warm up. Raises CaseError."""
        self.measured.about = self._ask(self._job)

    def burst(self) -> None:
        """Measure one round: several calls, or one long call. Raises CaseError."""
        warm = max(self.measured.about["warm_ms"] / 1000, 1e-6)
        answer = self._ask({"calls": min(max(round(BURST_S / warm), 1), 500)})
        self.measured.times += answer.pop("times")
        self.measured.rounds += 1
        self.measured.about |= answer

    def has_time_for_another(self) -> bool:
        """Return whether one more round is likely to end within the limit."""
        rounds = self.measured.rounds
        return self._spent + sum(self.measured.times) / 1000 / max(rounds, 1) * 1.5 < self._limit

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        start = time.monotonic()
        try:
            self._process.stdin.write((json.dumps(message) + "\n").encode())
            self._process.stdin.flush()
        except OSError:
            raise CaseError(self._exit_reason()) from None
        try:
            line = self._answers.get(timeout=max(self._limit - self._spent, 0.001))
        except queue.Empty:
            raise CaseError(f"no result within {self._limit:g} s") from None
        self._spent += time.monotonic() - start
        if not line:
            raise CaseError(self._exit_reason())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CaseError(str(answer["error"]))
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._answers.put(line)
        self._answers.put(b"")

    def _exit_reason(self) -> str:
        """Return why the process ended without an answer."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        if status == -getattr(signal, "SIGKILL", 9):
            return "its process was killed, most likely because the memory is not enough"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        reason = f": {lines[-1][:200]}" if lines else ""
        return f"its process ended with status {status}{reason}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not flushed has no reader any more
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rounded(value: float | None) -> float | None:
    """Round to five significant digits."""
    return None if value is None else float(f"{value:.5g}")


def _mib(value: int | None) -> float | None:
    return None if value is None else round(value / 2**20, 1)
