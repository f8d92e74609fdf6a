"""The process of one benchmark case: `python -m restort.profiling.worker`.

The protocol is a line of JSON each way. The first line is the case: {"weights", "backend", "precision", "batch",
"height", "width", "threads", "warm"}; the answer has the times of loading and warming up. Every further line {"calls":
N} is answered by N times. The end of the input ends the process, and so does an answer with "error".
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restort.runner import Runner

Timer = Callable[[], float]


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; answers must stay alone
    _prefer_as_oom_victim()
    meter: Meter | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if meter is None:
                meter = Meter(job)
                answer = meter.about | meter.memory()
            else:
                answer = meter.burst(int(job["calls"])) | meter.memory()
        except Exception as error:
            answer = {"error": _message(error)}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return 1
    return 0


def _prefer_as_oom_victim() -> None:
    """Make Linux end this process, not its parent, where memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


class Meter:
    """A runner, made, called once and warmed up; `about` has the times of that."""

    def __init__(self, job: dict[str, Any]) -> None:
        from restort.backends.registry import create
        from restort.profiling.samples import synthetic
        from restort.weights.checkpoint import load_weights

        weights = load_weights(Path(job["weights"]))
        x = synthetic(weights.spec, (job["batch"], job["height"], job["width"])).x
        start = time.perf_counter()
        self.runner = create(weights, job["backend"], job["precision"], threads=job["threads"])
        made = time.perf_counter()
        self.runner(x)
        first = time.perf_counter()
        self.timer, clock = timer_of(self.runner, x)
        warm = min(self.timer() for _ in range(job["warm"]))
        self.about: dict[str, Any] = {
            "precision": self.runner.precision,
            "create_ms": 1000 * (made - start),
            "first_call_ms": 1000 * (first - made),
            "warm_ms": warm,
            "timer": clock,
        }
        if self.runner.device is not None:
            self.about["device"] = self.runner.device

    def burst(self, calls: int) -> dict[str, Any]:
        """Return the times of `calls` calls, in milliseconds."""
        if calls > 1:  # short ones: the first finds the caches as other processes left them
            self.timer()
        return {"times": [self.timer() for _ in range(calls)]}

    def memory(self) -> dict[str, Any]:
        """Return the peak memory so far: of this process and, where the runner reports it, of its device."""
        from restort.profiling.machine import peak_rss

        found: dict[str, Any] = {"host_peak_bytes": peak_rss()}
        peak = self.runner.device_peak_bytes()
        if peak is not None:
            found["device_peak_bytes"] = peak
        return found


def timer_of(runner: Runner, x: Any) -> tuple[Timer, str]:
    """Return a function that runs `x` once and returns milliseconds, and a description of its clock."""
    timer = runner.timer(x)
    if timer is not None:
        return timer, "the device's events, input and output on the device"

    def wall() -> float:
        start = time.perf_counter()
        runner(x)
        return 1000 * (time.perf_counter() - start)

    return wall, "wall clock, NumPy arrays in and out"


def _message(error: Exception) -> str:
    from restort.errors import RestortError

    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError):
        return "the memory is not enough"
    return text if isinstance(error, RestortError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
