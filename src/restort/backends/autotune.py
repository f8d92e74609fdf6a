"""`auto` on a processor: measure which backend and precision run these weights fastest, and keep the result.

Candidates run a small array each, the most promising first. Times hold for one processor, thread count, network shape
and set of library versions; the PSNR of bfloat16 against float32 holds for one file of weights. Both are kept in the
cache folder under timings/.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.models.spec import Spec
from restort.runner import Array, Notify, Runner
from restort.utils.cache_dir import cache_root
from restort.utils.cpu import default_threads, native_bfloat16, processor_name
from restort.utils.extras import library_version
from restort.utils.files import write_bytes
from restort.utils.integers import round_up
from restort.version import __version__
from restort.weights.checkpoint import Weights

Pair = tuple[str, str]
Make = Callable[[str, str, Weights, int | None], Runner]

NEAR_DB = 45.0  # least PSNR (peak 1) of bf16 against fp32 for `auto` to select it: 1.4 RMS steps of 8 bits
BUDGET_S = 5.0  # no further candidate is tried after this long
HOPELESS = 3.0  # a candidate whose first warm run takes this many times the best time is not run again
WARM = 1  # runs that are not timed: libraries compile and allocate
REPEATS = 2
METHOD = 2  # increase it with every change of how times are measured
TILE = 128  # edge of the picture in pixels
ORDER: tuple[Pair, ...] = (
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("torch", "bf16"),
    ("torch", "fp32"),
)


@dataclass
class Findings:
    """Measurements on this machine with this network.

    seconds    of one warm run, by candidate ('openvino/bf16')
    near       PSNR in dB of bf16 candidates against fp32, by digest of the weights and candidate
    complete   candidates of a finished measurement, tried or not
    """

    seconds: dict[str, float] = field(default_factory=dict)
    near: dict[str, dict[str, float]] = field(default_factory=dict)
    complete: list[str] = field(default_factory=list)


def choose(
    weights: Weights,
    pairs: Sequence[Pair],
    *,
    threads: int | None,
    notify: Notify,
    make: Make,
    clock: Callable[[], float] = time.perf_counter,
) -> Runner:
    """Make the Runner of the fastest of `pairs` whose result is within NEAR_DB of fp32.

    `notify` receives a sentence where there was a choice. Raises RestortError where no candidate can be made.
    """
    ranked = sorted(pairs, key=lambda pair: ORDER.index(pair) if pair in ORDER else len(ORDER))
    if len({precision for _, precision in ranked}) > 1 and not native_bfloat16():
        ranked = [pair for pair in ranked if pair[1] == "fp32"]
    if len(ranked) == 1:
        return make(*ranked[0], weights, threads)
    path, key = _record(weights.spec, threads or default_threads(), ranked)
    found = _load(path, key)
    ids = ["/".join(pair) for pair in ranked]
    chosen = _best(found, ids, weights.digest)
    kept = chosen is not None
    if chosen is None:
        trial = _Trial(weights, threads, make, clock, found)
        trial.run(ranked)
        found.complete = ids
        _store(path, key, found)
        chosen = _best(found, ids, weights.digest)
        if chosen is None:
            raise RestortError(f"no backend could run these weights: {trial.failure or 'none was tried'}")
    notify(_summary(chosen, found, ids, kept, found.near.get(weights.digest, {})))
    name, precision = chosen.split("/")
    return make(name, precision, weights, threads)


def _best(found: Findings, ids: list[str], digest: str) -> str | None:
    """Return the fastest candidate; None where the measurement covers neither all of them nor bf16 of these weights."""
    if not set(ids) <= set(found.complete):
        return None
    near = found.near.get(digest, {})
    timed = sorted((found.seconds[i], i) for i in ids if i in found.seconds)
    compares = any(i.endswith("/fp32") for i in ids)  # otherwise the user asked for bf16
    for _, name in timed:
        if name.endswith("/fp32") or not compares:
            return name
        if name not in near:
            return None
        if near[name] >= NEAR_DB:
            return name
    return None


class _Trial:
    """One measurement of several candidates, which adds to `found`."""

    def __init__(
        self,
        weights: Weights,
        threads: int | None,
        make: Make,
        clock: Callable[[], float],
        found: Findings,
    ) -> None:
        self.weights, self.threads, self.make, self.clock, self.found = weights, threads, make, clock, found
        self.tile = sample(weights.spec)
        self.results: dict[str, Array] = {}
        self.failure = ""

    def run(self, ranked: list[Pair]) -> None:
        """Time each of `ranked` until the time is up, then compare the bf16 results with one of fp32."""
        start, best = self.clock(), math.inf
        for pair in ranked:
            late = self.clock() - start > BUDGET_S
            if late and any(i.endswith("/fp32") for i in self.results):
                break  # there is an fp32 candidate, which needs no comparison
            name = "/".join(pair)
            try:
                seconds = self._time(pair, name, best)
            except RestortError as error:  # one broken library must not hide the others
                self.failure = self.failure or str(error)
                continue
            self.found.seconds[name] = seconds
            best = min(best, seconds)
        reference = next((y for name, y in self.results.items() if name.endswith("/fp32")), None)
        if reference is None:
            return
        near = self.found.near.setdefault(self.weights.digest, {})
        near.update({n: _psnr(y, reference) for n, y in self.results.items() if n.endswith("/bf16")})

    def _time(self, pair: Pair, name: str, best: float) -> float:
        """Seconds of one warm run."""
        runner = self.make(*pair, self.weights, self.threads)
        with contextlib.closing(runner):
            runner.expect(self.tile.shape)
            times: list[float] = []
            for _ in range(WARM + REPEATS):
                start = self.clock()
                self.results[name] = runner(self.tile)
                times.append(self.clock() - start)
                if len(times) > WARM and times[-1] > HOPELESS * best:
                    break
            return min(times[WARM:])


def sample(spec: Spec) -> Array:
    """Make the picture to measure on: (1, C, TILE, TILE) float32 in [0, 1] with smooth shades, edges and noise."""
    rng = np.random.default_rng(0)
    side = round_up(TILE, spec.size_multiple)
    y, x = np.mgrid[:side, :side] / side
    shades = 0.5 + 0.2 * np.sin(7 * x + 3 * y) + 0.1 * np.cos(23 * y * x)
    edges = 0.25 * ((np.floor(9 * x) + np.floor(9 * y)) % 2 - 0.5)
    planes = [shades + edges + 0.02 * rng.standard_normal((side, side)) for _ in range(spec.in_channels)]
    return np.asarray(np.clip(np.stack(planes)[None], 0, 1), np.float32)


def _psnr(a: Array, b: Array) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return min(-10 * math.log10(error), 200.0) if error > 0 else 200.0 if error == 0 else -math.inf


def _summary(chosen: str, found: Findings, ids: list[str], kept: bool, near: dict[str, float]) -> str:
    others = []
    for name in ids:
        if name in found.seconds and name != chosen:
            decibels = near.get(name, math.inf)
            far = f" ({decibels:.0f} dB from fp32, {NEAR_DB:.0f} needed)" if decibels < NEAR_DB else ""
            others.append(f"{name} {found.seconds[name]:.2f} s{far}")
    how = "measured before" if kept else "measured now"
    against = f" against {', '.join(others)}" if others else ""
    return f"auto selected {chosen}: {found.seconds[chosen]:.2f} s for {TILE}x{TILE}{against} ({how})"


def _record(spec: Spec, threads: int, ranked: Sequence[Pair]) -> tuple[Path, dict[str, Any]]:
    """Return the file for this machine and network, and the key that it must hold."""
    from restort.export.emit import EMITTER

    names = sorted({name for name, _ in ranked})
    key = {
        "processor": processor_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "restort": __version__,
        "emitter": EMITTER,
        "libraries": {name: library_version(name) for name in names},
        "network": {"architecture": spec.architecture} | asdict(spec),
        "tile": TILE,
        "method": METHOD,
    }
    key = json.loads(json.dumps(key))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_root() / "timings" / f"{digest}.json", key


def _load(path: Path, key: dict[str, Any]) -> Findings:
    """Read the findings; they are empty where the file is absent, damaged or has another key."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        if kept["key"] != key:
            return Findings()
        seconds = {str(k): float(v) for k, v in kept["seconds"].items()}
        near = {str(d): {str(k): float(v) for k, v in n.items()} for d, n in kept["near"].items()}
        complete = [str(name) for name in kept["complete"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Findings()
    sane = all(math.isfinite(s) and s > 0 for s in seconds.values())
    return Findings(seconds, near, complete) if sane else Findings()


def _store(path: Path, key: dict[str, Any], found: Findings) -> None:
    """Write the findings. Where the cache cannot be written, the next run measures again."""
    text = json.dumps({"key": key, **asdict(found)}, indent=1)
    with contextlib.suppress(RestortError):
        write_bytes(path, text.encode(), overwrite=True, private=True)
