"""Measure backends: latency, throughput, first call and peak memory over sizes, batches and precisions.

Every case runs in its own process (worker.py), so that memory, threads and settings do not reach the next case, and a
case that fails (out of memory, a library that does not load) fails alone. Cases of one size and batch are peers: their
processes start and warm up one after the other and are then called in turn, round by round, so that other load on the
machine affects all of them alike.

A backend takes part as it is. Its runner may bring a clock of its own (`timer(x)`, see worker), the name of
its device (`device`) and that device's memory (`device_peak_bytes()`, which then is the record's peak_mib).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from restort.errors import UsageError
from restort.models.spec import Spec
from restort.profiling.machine import clocks, machine, provenance
from restort.profiling.samples import SEED
from restort.profiling.sides import Side
from restort.profiling.worker_process import Case, CaseError, Child, Measured

SECONDS = 5.0  # of calls per case
LIMIT = 300.0  # seconds for all of a case
ROUNDS = 5  # at least, while the limit allows
HEADS = (
    "batch x size",
    "backend",
    "median ms",
    "p5",
    "p95",
    "images/s",
    "peak MiB",
    "create ms",
    "first call ms",
)

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    weights  the file
    name     of the network in records
    seconds  of calls per case, at least; `limit`: seconds for all of a case
    alone    measure cases one after the other, instead of in turn
    """

    weights: Path
    name: str
    spec: Spec
    digest: str
    sides: Sequence[Side]
    sizes: Sequence[tuple[int, int]] = ((256, 256),)
    batches: Sequence[int] = (1,)
    seconds: float = SECONDS
    limit: float = LIMIT
    threads: int | None = None
    alone: bool = False
    notify: Notify = field(default=lambda line: None)

    def check(self) -> None:
        """Raise UsageError for a size that is no multiple of the network's."""
        multiple = self.spec.size_multiple
        for height, width in self.sizes:
            if height % multiple or width % multiple:
                raise UsageError(
                    f"the size {height}x{width} cannot be measured: this network takes multiples of {multiple}"
                )


def bench(settings: Settings) -> list[dict[str, Any]]:
    """Measure every case; return a record for each, in the order sizes, batches, backends.

    Records: {workload, model, architecture, weights_sha256, backend, precision, batch, height, width, median_ms,
    p5_ms, p95_ms, images_per_second, peak_mib, host_peak_mib, create_ms, first_call_ms, calls, rounds, timer,
    error, peers, input, device, machine, versions, command, date}. Times are of one call in ms. create_ms is the time
    to make the runner from weights in memory, first_call_ms that of the first call; peak_mib is the largest resident
    memory of the case's process or, where the runner reports it, of the device. `error` is None unless the case failed.

    Raises UsageError for a size that is no multiple of the network's.
    """
    settings.check()
    busy = machine()
    if (busy["load_before"] or 0) > busy["cores"] / 2:
        settings.notify(
            f"the machine is busy (load {busy['load_before']} on {busy['cores']} cores): times are not its own"
        )
    records = []
    for (height, width), batch in product(settings.sizes, settings.batches):
        cases = [Case(side.backend, side.precision, batch, height, width) for side in settings.sides]
        for group in [[case] for case in cases] if settings.alone else [cases]:
            about = provenance()
            measured = _measure_peers(group, settings)
            about["machine"]["clocks_after"] = clocks()
            records += [_record(one, settings, about, len(group)) for one in measured]
    return records


def _measure_peers(cases: list[Case], settings: Settings) -> list[Measured]:
    """Measure peers: prepare all, then call them in turn until each has its seconds and rounds."""
    with contextlib.ExitStack() as stack:
        children = []
        for case in cases:
            settings.notify(f"{case}: loading and warming up")
            child = stack.enter_context(Child(case, settings.weights, settings.threads, settings.limit))
            children.append(child)
            _try(child, child.prepare, settings.notify)
        running = [child for child in children if child.measured.error is None]
        while running:
            for child in list(running):
                _try(child, child.burst, settings.notify)
                if _is_done(child, settings.seconds):
                    running.remove(child)
        return [child.measured for child in children]


def _try(child: Child, step: Callable[[], None], notify: Notify) -> None:
    try:
        step()
    except CaseError as error:
        child.measured.error = str(error)
        notify(f"{child.measured.case}: {error}")
        child.close()


def _is_done(child: Child, seconds: float) -> bool:
    measured = child.measured
    if measured.error is not None or not child.has_time_for_another():
        return True
    return sum(measured.times) >= 1000 * seconds and measured.rounds >= ROUNDS


def _record(measured: Measured, settings: Settings, about: dict[str, Any], peers: int) -> dict[str, Any]:
    case = measured.case
    device = measured.about.get("device")
    return {
        "workload": f"{settings.name}-{case.height}x{case.width}",
        "model": settings.name,
        "architecture": settings.spec.architecture,
        "weights_sha256": settings.digest,
        **measured.record(),
        "peers": peers,
        "threads": settings.threads,
        "input": f"dead leaves, seed {SEED}",
        **about,
        **({"device": device} if device else {}),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return text: a line for each case."""
    rows = [list(HEADS)]
    for r in records:
        where = f"{r['batch']} x {r['height']}x{r['width']}"
        names = (
            "median_ms",
            "p5_ms",
            "p95_ms",
            "images_per_second",
            "peak_mib",
            "create_ms",
            "first_call_ms",
        )
        cells = [_number(r[name]) for name in names] if r["error"] is None else [""] * len(names)
        rows.append([where, f"{r['backend']} {r['precision']}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = []
    for row, record in zip(rows, [None, *records], strict=True):
        cells = [
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        failed = record is not None and record["error"] is not None
        lines.append("  ".join(cells[:2]) + f"  {record['error']}" if failed and record else "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
