"""The report of an evaluation: scores of every picture, averages, and the definition of each number."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from restort.utils.files import write_bytes

NUMBERS = ("psnr", "ssim", "psnr_input", "psnr_aligned", "psnr_input_aligned", "seconds")
FORMAT = 1


@dataclass(frozen=True)
class Row:
    """Scores of one picture under one condition; PSNR in dB, None where a number was not measured.

    psnr_input        of the degraded input (for upscale, of its bicubic enlargement)
    psnr_aligned      for deblur: after the best translation of the result onto the reference
    seconds           of the network alone
    """

    name: str
    condition: str
    width: int
    height: int
    psnr: float
    ssim: float | None
    psnr_input: float
    seconds: float
    psnr_aligned: float | None = None
    psnr_input_aligned: float | None = None


@dataclass(frozen=True)
class Average:
    """Means over the pictures of a condition ("all": over all rows)."""

    condition: str
    pictures: int
    psnr: float
    ssim: float | None
    psnr_input: float
    seconds: float
    psnr_aligned: float | None = None
    psnr_input_aligned: float | None = None


@dataclass
class Report:
    """An evaluation. `metrics` defines every number in words; `model` and `settings` say what was measured."""

    task: str
    dataset: str
    made: str
    metrics: dict[str, str]
    model: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    command: list[str] = field(default_factory=lambda: [*sys.argv])

    def averages(self) -> list[Average]:
        """Return the averages of every condition, in order, and of "all" where there are several."""
        names = list(dict.fromkeys(row.condition for row in self.rows))
        means = [_mean(name, [row for row in self.rows if row.condition == name]) for name in names]
        return means if len(means) < 2 else [*means, _mean("all", self.rows)]

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as valid JSON (an infinite PSNR becomes null)."""
        return {
            "format": FORMAT,
            "task": self.task,
            "dataset": self.dataset,
            "made": self.made,
            "model": self.model,
            "settings": self.settings,
            "metrics": self.metrics,
            "averages": [_plain(asdict(mean)) for mean in self.averages()],
            "rows": [_plain(asdict(row)) for row in self.rows],
            "date": self.date,
            "command": self.command,
            "versions": versions(),
        }

    def save(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Write `to_json()` to a file (temporary name and rename)."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        write_bytes(Path(path), text.encode(), overwrite=overwrite)

    def table(self, *, pictures: bool = True) -> str:
        """Return text: a line per picture (unless `pictures` is False) and a line per average."""
        aligned = any(row.psnr_aligned is not None for row in self.rows)
        base = "bicubic" if self.task == "upscale" else "input"
        heads = ["", "condition", "PSNR", "SSIM", base, "gain"] + (
            ["aligned", f"{base} al."] if aligned else []
        )
        lines = [heads]
        lines += [[row.name, row.condition, *_cells(row, aligned)] for row in self.rows if pictures]
        lines += [["average", mean.condition, *_cells(mean, aligned)] for mean in self.averages()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        text = ["  ".join([*_left(line, widths), *_right(line, widths)]).rstrip() for line in lines]
        notes = [f"{name}: {meaning}" for name, meaning in self.metrics.items()]
        return "\n".join([*text, "", *notes])


def _cells(row: Row | Average, aligned: bool) -> list[str]:
    cells = [_number(row.psnr, 3), _number(row.ssim, 4), _number(row.psnr_input, 3)]
    cells.append(_number(row.psnr - row.psnr_input if math.isfinite(row.psnr_input) else None, 3, "+"))
    if aligned:
        cells += [_number(row.psnr_aligned, 3), _number(row.psnr_input_aligned, 3)]
    return cells


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _left(line: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]


def _right(line: list[str], widths: list[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]


def _mean(condition: str, rows: list[Row]) -> Average:
    def mean(name: str) -> Any:
        values = [getattr(row, name) for row in rows]
        return None if any(value is None for value in values) else sum(values) / len(values)

    return Average(condition, len(rows), **{name: mean(name) for name in NUMBERS})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return round(value, 6) if math.isfinite(value) else None

    return {name: plain(value) for name, value in values.items()}


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the libraries that compute."""
    found = {"python": python_version()}
    for name in ("restort", "numpy", "scikit-image", "scipy", "onnxruntime", "openvino", "torch", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
