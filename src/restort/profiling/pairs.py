"""Pairs of a typical network input and its clean picture, on which precision choices are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.profiling.synthetic import dead_leaves
from restort.utils.integers import round_up
from restort.weights.checkpoint import Weights

Array: TypeAlias = NDArray[Any]

EDGE = 192  # pixels of an input, at most, rounded up to the size multiple
SIGMA = 25 / 255


@dataclass(frozen=True)
class Pair:
    """An input and its clean picture.

    x      float32 (1, C, H, W) in [0, 1]; H and W are multiples of the network's size multiple
    clean  (1, C', H * scale, W * scale), or None where it is unknown
    """

    name: str
    x: Array
    clean: Array | None


def pairs(weights: Weights, pictures: Sequence[Path] = (), edge: int = EDGE) -> list[Pair]:
    """Return a pair of the middle of each picture, or two synthetic pairs without pictures.

    For a network that enlarges, the clean picture is reduced (bicubic); for one that denoises, it gets noise of sigma
    25 of 255. Other networks take the picture itself, and `clean` is None. Dual-pixel networks take two pictures and
    always get synthetic ones.
    """
    spec = weights.spec
    side = round_up(edge, spec.size_multiple)
    if pictures and spec.in_channels in (1, 3):
        cleans = [(path.name, _middle(path, side * spec.scale, weights)) for path in pictures]
    else:
        large = side * spec.scale
        cleans = [
            (f"dead leaves, seed {seed}", dead_leaves(large, large, spec.in_channels, seed))
            for seed in (0, 1)
        ]
    return [_pair(name, clean, weights, i) for i, (name, clean) in enumerate(cleans)]


def _pair(name: str, clean: Array, weights: Weights, seed: int) -> Pair:
    spec = weights.spec
    if spec.scale > 1:
        from restort.evaluation.resize import imresize

        small = imresize(clean.transpose(1, 2, 0).astype(np.float64), 1 / spec.scale).transpose(2, 0, 1)
        return Pair(name, np.ascontiguousarray(np.clip(small, 0, 1)[None], np.float32), clean[None])
    if weights.metadata.get("task", "denoise") == "denoise" and spec.in_channels == spec.out_channels:
        noise = np.random.default_rng(seed).standard_normal(clean.shape) * SIGMA
        return Pair(name, np.ascontiguousarray((clean + noise)[None], np.float32), clean[None])
    return Pair(name, np.ascontiguousarray(clean[None], np.float32), None)


def _middle(path: Path, side: int, weights: Weights) -> Array:
    """Return the middle of a picture, at most `side` x `side`, cropped to the network's size multiple."""
    from restort.imaging.decode import read

    x = read(path).to_unit(weights.spec.in_channels)[0]
    step = weights.spec.size_multiple * weights.spec.scale
    height, width = (min(side, n // step * step) for n in x.shape[1:])
    if not height or not width:
        from restort.errors import RestortError

        raise RestortError(
            f"{path} is too small to measure on; give pictures of at least {step} pixels a side"
        )
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return np.asarray(x[:, top : top + height, left : left + width], np.float32)
