"""What benchmarks/tensorrt86.py measures, and how what is other than usual is written: 'attention unit, level 2'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpu_workloads import TASKS

from restort.backends.tensorrt.build import BuildOptions
from restort.export.form import WEAKLY_TYPED, Form

PRECISIONS = ("fp16", "tf32", "fp32")
PLAIN = "plain"  # the graph of --plain, with the FP16 flag and nothing else
OPTIONS = ("constraints", "level", "threads", "static", "kernels")
FUSED = "kernels fused"  # RestoRT's own, whose plans have to be in the cache folder: plan_make.py --workloads


@dataclass(frozen=True)
class Case:
    """One engine. `profile` is 'fixed', or 'dynamic' for the sizes that `--backend tensorrt` takes; `form` what is
    other than usual, '' for nothing (see `parsed`)."""

    network: str
    height: int
    width: int
    precision: str = "fp16"
    profile: str = "fixed"
    form: str = ""
    batch: int = 1
    level: int | None = None
    limit: float = 330.0

    @property
    def workload(self) -> str:
        return f"{self.network}-{self.height}x{self.width}"

    @property
    def variant(self) -> str:
        level = "" if self.level is None else f"level {self.level}"
        profile = "" if self.profile == "fixed" else self.profile
        return ", ".join(part for part in (profile, self.form, level) if part)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.workload, self.precision, self.batch, self.variant

    def __str__(self) -> str:
        return f"{self.workload} x{self.batch} {self.precision}{f' ({self.variant})' * bool(self.variant)}"


def parsed(form: str) -> tuple[Form, dict[str, Any]]:
    """The form of the graph and the fields of BuildOptions that a text such as 'norm layer, level 2' names."""
    changes: dict[str, Any] = {}
    options: dict[str, Any] = {"constraints": "none"} if form == PLAIN else {}
    for part in filter(None, (part.strip() for part in form.split(",") if form != PLAIN)):
        name, _, value = part.partition(" ")
        if name in OPTIONS:
            options[name] = int(value) if value.isdigit() else value
        elif name in {field.name for field in fields(Form)}:
            changes[name] = value
        else:
            raise ValueError(f"{part!r}: no field of Form, and none of {', '.join(OPTIONS)}")
    assert set(options) <= {field.name for field in fields(BuildOptions)}
    return Form(**{**asdict(WEAKLY_TYPED), **changes}), options


def cases(plain: bool) -> Iterator[Case]:
    """The most important first."""
    for network, height, width in TASKS:
        yield Case(network, height, width, form=FUSED)
    yield Case("elan-light-x4", 192, 320)
    yield Case("elan-x4", 192, 320)
    yield Case("restormer", 368, 552)
    yield Case("restormer", 720, 1280)
    yield Case("restormer", 256, 256)
    yield Case("elan-light-x4", 192, 320, profile="dynamic")
    if plain:
        yield Case("elan-light-x4", 192, 320, form=PLAIN)
    for precision in PRECISIONS[1:]:
        yield Case("elan-light-x4", 192, 320, precision)
    for form in ("constraints wide", "constraints none", "constraints pinned", "windows shuffle"):
        yield Case("elan-light-x4", 192, 320, form=form)
    for form in (
        "constraints wide",
        "constraints none",
        "constraints pinned",
        "attention folded",
        "attention after",
        "attention before",
        "attention parts",
        "attention unit",
        "norm arithmetic",
        "norm layer",
        "gate separate",
    ):
        yield Case("restormer", 256, 256, form=form)
    yield Case("restormer", 368, 552, profile="dynamic")
    yield Case("elan-light-x4", 192, 320, level=5)
    yield Case("restormer", 256, 256, batch=8)
    for precision in PRECISIONS[1:]:
        yield Case("restormer", 256, 256, precision)
