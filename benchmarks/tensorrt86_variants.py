"""What benchmarks/tensorrt86_bisect.py tries: a network, its size, and how it is written and built, in words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tensorrt86_cases import parsed

REFERENCE = (
    "attention after, norm arithmetic, level 0"  # in float32: what seems the least for a compiler to fail at
)
SIZES = {"r": (256, 256), "R": (368, 552), "l": (192, 320), "L": (192, 320), "e": (192, 320), "E": (192, 320)}

# In the order of use: as it is, one change at a time, two, ways that need no float16 graph, threads, full sizes.
VARIANTS = (
    f"r: fp32, {REFERENCE}",
    "r: ",
    "r: static 0",
    "r: level 2",
    "r: constraints pinned, level 2",
    "r: attention unit",
    "r: norm arithmetic",
    "r: attention after, norm arithmetic, level 2",
    "r: attention parts",
    "r: constraints wide, level 2",
    "r: constraints pinned, attention after, norm arithmetic",
    "r: attention unit, norm arithmetic",
    f"l: fp32, {REFERENCE}",
    "l: ",
    "l: level 2",
    "l: static 0",
    "r: attention parts, norm arithmetic, level 2",
    "r: static 0, level 2",
    "r: constraints none, level 2",
    "r: attention after",
    "r: attention before",
    "r: level 0",
    "r: level 1",
    "r: norm layer",
    "r: attention folded",
    "r: constraints pinned, norm convolution, attention after, level 1",
    "r: attention unit, norm arithmetic, gate separate, level 1",
    "r: threads 1",
    "l: threads 1",
    "l: level 0",
    "l: windows shuffle",
    "l: constraints pinned, level 2",
    "E: level 2",
    "E: level 1",
    "L: level 2",
    "E: ",
)


@dataclass(frozen=True)
class Variant:
    """One engine: a letter of the network (SIZES), its size, and what is other than usual in words."""

    network: str
    height: int
    width: int
    precision: str
    form: str

    @staticmethod
    def of(text: str) -> Variant:
        """From 'r: attention unit', 'r: fp32, level 0' or 'R 720x1280: level 2'."""
        place, _, form = text.partition(":")
        name, *size = place.split()
        height, width = map(int, size[0].split("x")) if size else SIZES[name]
        parts = [part.strip() for part in form.split(",") if part.strip()]
        precision = parts.pop(0) if parts and parts[0] in ("fp32", "tf32", "fp16") else "fp16"
        found = Variant(name, height, width, precision, ", ".join(parts))
        parsed(found.form)
        return found

    @property
    def place(self) -> str:
        return f"{self.network} {self.height}x{self.width}"

    def __str__(self) -> str:
        return f"{self.place} {self.precision}: {self.form or 'as used'}"


def weights_of(network: str) -> Any:
    from gpu_workloads import NETWORKS
    from random_weights import random_state

    from restort.models.checkpoint import Weights

    name = {"r": "restormer", "l": "elan-light-x4", "e": "elan-x4"}[network.lower()]
    spec: Any = NETWORKS[name]
    if network == "r":
        spec = replace(spec, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)
    elif network.islower():
        spec = replace(spec, blocks=4)
    return Weights(random_state(spec), spec, {}, hashlib.sha256(repr(spec).encode()).hexdigest(), Path(name))
