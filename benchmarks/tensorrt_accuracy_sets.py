"""The networks and test sets of tensorrt_accuracy.py, and the pictures of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

REFERENCE = "torch:fp32"
SETS = {"ELAN-light x4": "set5", "restormer-small-denoise": "kodak24"}
SIGMA = 25.0


def slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def pictures(work: Path, model: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(what the network is given, (H, W, C) on the scale of [0, 1], the clean picture, uint8)."""
    with np.load(work / f"{SETS[model]}.npz") as kept:
        for i in range(sum(name.startswith("clean") for name in kept.files)):
            clean = kept[f"clean{i}"]
            if f"degraded{i}" in kept.files:
                degraded = kept[f"degraded{i}"].astype(np.float64)
            else:  # as `restort evaluate` makes it
                noise = np.random.Generator(np.random.PCG64([0, i])).standard_normal(clean.shape)
                degraded = clean + SIGMA * noise
            yield (degraded / 255).astype(np.float32), clean
