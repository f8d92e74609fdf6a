"""What a run is: one TOML file per model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.models.spec import ELAN_WINDOWS, ElanSpec, RestormerSpec, Spec

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


@dataclass(frozen=True)
class Config:
    """Settings of one run. Patch sizes are in pixels of the network's input."""

    name: str
    task: str  # upscale, denoise or deblur: what the shipped model is for
    spec: Spec
    steps: int
    batch: int
    patch: int
    learning_rate: float
    final_learning_rate: float = 1e-6
    warmup: int = 200
    weight_decay: float = 0.0
    clip: float | None = None
    loss: str = "l1"
    ema: float = 0.999
    seed: int = 0
    sigma: tuple[float, float] = (0.0, 50.0)
    kernel_size: int = 33
    kernel_spread: float = 1.0  # see degrade.motion_kernels
    start_from: str | None = None
    precision: str = "bf16"
    progressive: tuple[tuple[float, int, int], ...] = ()  # (from this share of the steps, patch, batch)
    checkpoint_seconds: float = 60.0
    validate_every: int = 2000
    exclude: tuple[str, ...] = ()  # names of photographs to keep out altogether
    recipe: str = "classic"  # classic: bicubic, white noise, motion blur; photo: train.degradations.recipes
    reduce: tuple[float, ...] = (1.0,)  # the photographs are used at each of these sizes, made smaller first
    drawings: int = 0  # pages of rendered text and shapes among the photographs
    loss_floor: float = (
        1e-8  # mean square error that the loss "psnr" adds: no gain from pictures better than that
    )

    def stages(self) -> list[tuple[float, int, int]]:
        """(share of the steps at which it begins, patch, batch) of every stage, in order."""
        return [(0.0, self.patch, self.batch), *self.progressive]

    def stage(self, step: int) -> tuple[int, int]:
        """(patch, batch) of a step."""
        patch, batch = self.patch, self.batch
        for share, later_patch, later_batch in self.stages():
            if step >= share * self.steps:
                patch, batch = later_patch, later_batch
        return patch, batch


def _spec(table: dict[str, Any]) -> Spec:
    kind = table.pop("architecture")
    if kind == "elan":
        return ElanSpec(window_sizes=ELAN_WINDOWS, **{"colors": 3, "rgb_range": 1.0, "expand": 2} | table)
    if kind == "restormer":
        table["num_blocks"], table["heads"] = tuple(table["num_blocks"]), tuple(table["heads"])
        return RestormerSpec(
            **{"in_channels": 3, "out_channels": 3, "bias": False, "dual_pixel": False} | table
        )
    raise ValueError(f"architecture {kind!r} is neither elan nor restormer")


def read_config(path: Path, **changes: Any) -> Config:
    """The configuration in `path`, with `changes` (those that are not None) on top."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    table["spec"] = _spec(table.pop("network"))
    table.setdefault("name", path.stem)
    for name in ("sigma", "progressive", "exclude", "reduce"):
        if name in table:
            table[name] = tuple(tuple(v) if isinstance(v, list) else v for v in table[name])
    known = {f.name for f in dataclasses.fields(Config)}
    if unknown := set(table) - known:
        raise ValueError(f"{path} has settings that do not exist: {', '.join(sorted(unknown))}")
    return Config(**table | {k: v for k, v in changes.items() if v is not None})
