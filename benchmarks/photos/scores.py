"""Scores of a model on a set: each picture restored by `Model.restore_file` and compared with its truth."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import restort
from photos.degradations import YCC
from photos.files import Array, read, write_once
from photos.sets import INPUTS, SETS, Bench, Needs, Sample
from restort.evaluation.resize import imresize

EXACT = 99.0  # dB written for a result that equals its truth


@dataclass(frozen=True)
class Score:
    """One picture; PSNR in dB, None without a truth. Colours are mean |Cb| and |Cr| where the truth is gray."""

    name: str
    size: tuple[int, int]
    input: float | None
    output: float | None
    seconds: float
    input_colour: float | None = None
    output_colour: float | None = None


@dataclass
class Row:
    """One set: means over its pictures; `worst` is the least gain (of undamaged inputs the least output PSNR)."""

    set: str
    note: str
    pictures: list[Score]
    needs: Needs
    seconds: float
    against: float | None = None
    tiles: list[str] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        values = [getattr(score, name) for score in self.pictures]
        return None if None in values or not values else statistics.fmean(values)

    @property
    def undamaged(self) -> bool:
        return self.mean("input") == EXACT

    @property
    def gain(self) -> float | None:
        before, after = self.mean("input"), self.mean("output")
        return None if before is None or after is None or self.undamaged else after - before

    @property
    def worst(self) -> tuple[str, float] | None:
        if self.mean("output") is None:
            return None
        least = [(s.output - (0 if self.undamaged else s.input), s.name) for s in self.pictures]  # type: ignore[operator]
        value, name = min(least)
        return name, value

    def verdicts(self) -> list[tuple[str, bool]]:
        """(what is asked, whether it is met)."""
        found: list[tuple[str, float, float | None]] = []
        worst, output = self.worst, self.mean("output")
        over = None if self.against is None or output is None else output - self.against
        for label, need, value in (
            ("gain", self.needs.gain, self.gain),
            ("worst", self.needs.worst, worst[1] if worst else None),
            ("output", self.needs.output, output),
            ("over ref", self.needs.against, over),
        ):
            if need is not None and value is not None:
                found.append((f"{label} >= {need:g}", need, value))
        return [(label, round(value or 0, 2) >= need) for label, need, value in found]

    def to_json(self) -> dict[str, Any]:
        worst = self.worst
        numbers = {
            "input": self.mean("input"),
            "output": self.mean("output"),
            "gain": self.gain,
            "worst": worst[1] if worst else None,
            "against": self.against,
            "input_colour": self.mean("input_colour"),
            "output_colour": self.mean("output_colour"),
            "seconds": self.seconds,
        }
        return {
            "set": self.set,
            "note": self.note,
            "pictures": len(self.pictures),
            **{name: None if value is None else round(value, 4) for name, value in numbers.items()},
            "worst_picture": worst[0] if worst else None,
            "needs": dict(self.verdicts()),
            "tiles": self.tiles,
            "rows": [asdict(score) for score in self.pictures],
        }


def psnr(a: Array, b: Array) -> float:
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return EXACT if error == 0 else min(10 * math.log10(255**2 / error), EXACT)


def luma(image: Array, border: int) -> Array:
    """Y in 16..235 (BT.601), not rounded, without `border` pixels on every side."""
    inner = image[border:-border, border:-border].astype(float)
    return np.asarray(inner @ np.array([65.481, 128.553, 24.966]) / 255 + 16)


def compare(image: Array, truth: Array, task: str, scale: int) -> float:
    if task == "upscale":
        return psnr(luma(image, scale), luma(truth, scale))
    return psnr(image, truth)


def colour(image: Array) -> float:
    """Mean |Cb| and |Cr| of 255: 0 for a gray picture."""
    return float(np.abs(image.astype(float) @ YCC[1:].T).mean())


def enlarged(image: Array, scale: int) -> Array:
    return np.asarray(imresize(image, scale)) if scale > 1 else image


class Network:
    """The model under test, and perhaps one that goes before it."""

    def __init__(self, models: list[restort.Model], work: Path) -> None:
        self.models = models
        digests = "-".join(model.weights.digest[:12] for model in models)
        self.label = "+".join(model.name for model in models)
        last = models[-1]
        self.key = f"{digests}-{last.backend}-{last.precision}"
        self.folder = work / "outputs" / f"{self.label}-{digests}"
        self.scale = last.scale

    def restore(self, source: Path, target: Path) -> str:
        """Restore a file; the tiling of the last model comes back."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for model in self.models[:-1]:
            between = target.with_name(f"{target.stem}.{model.name}.png")
            model.restore_file(source, between, overwrite=True)
            source = between
        return self.models[-1].restore_file(source, target, overwrite=True).tile


def score(network: Network, sample: Sample, target: Path, task: str) -> tuple[Score, str]:
    start = time.perf_counter()
    tile = network.restore(sample.source, target)
    seconds = time.perf_counter() - start
    image = read(sample.source)
    size = (image.shape[1], image.shape[0])
    if sample.truth is None:
        return Score(sample.name, size, None, None, seconds), tile
    truth, output = read(sample.truth), read(target)
    before = enlarged(image, network.scale)
    gray = bool((truth == truth[..., :1]).all())
    found = Score(
        sample.name,
        size,
        compare(before, truth, task, network.scale),
        compare(output, truth, task, network.scale),
        seconds,
        colour(before) if gray else None,
        colour(output) if gray else None,
    )
    return found, tile


def measure(bench: Bench, network: Network, task: str, name: str) -> Row:
    start = time.perf_counter()
    scores, tiles = [], []
    samples = bench.samples(task, name)
    for number, sample in enumerate(samples, 1):
        if sys.stderr.isatty():
            print(f"\r\033[K{name} {number}/{len(samples)}", end="", file=sys.stderr, flush=True)
        one, tile = score(network, sample, target_of(bench, network, name, sample), task)
        scores.append(one)
        tiles.append(tile)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    chosen = SETS[task][name]
    return Row(name, chosen.note, scores, chosen.needs, time.perf_counter() - start, tiles=sorted(set(tiles)))


def target_of(bench: Bench, network: Network, name: str, sample: Sample) -> Path:
    return network.folder / name / ("all" if bench.whole else "quick") / f"{sample.name}.png"


class Reference:
    """The reference model's mean output PSNR per set; kept by weights and made inputs, loaded only where needed."""

    def __init__(self, bench: Bench, task: str, load: Callable[[], Network], key: str) -> None:
        self.bench, self.task, self.load, self.key = bench, task, load, key
        self.network: Network | None = None

    def output(self, name: str) -> float | None:
        some = "all" if self.bench.whole else "quick"
        path = self.bench.work / "scores" / f"{self.key}-{self.task}-{name}-{some}-{INPUTS}.json"
        if not path.is_file():
            self.network = self.network or self.load()
            value = measure(self.bench, self.network, self.task, name).mean("output")
            write_once(path, lambda: json.dumps(value).encode())
        kept: float | None = json.loads(path.read_text())
        return kept
