"""Inputs of comparisons and benchmarks: pictures as float32 arrays in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.errors import UsageError
from restort.models.spec import Spec
from restort.profiling.synthetic import dead_leaves

Array: TypeAlias = NDArray[Any]
Size: TypeAlias = tuple[int, int, int]  # batch, height, width

SIZE: Size = (1, 256, 256)  # default
SEED = 0


@dataclass(frozen=True)
class Sample:
    """A named input: x float32 (N, C, H, W) in [0, 1], of any height and width."""

    name: str
    x: Array


def synthetic(spec: Spec, size: Size = SIZE, seed: int = SEED) -> Sample:
    """Return a batch of `dead_leaves` pictures, each with a seed of its own."""
    batch, height, width = size
    planes = [dead_leaves(height, width, spec.in_channels, seed + i) for i in range(batch)]
    return Sample(f"dead leaves, seed {seed}", np.stack(planes))


def files(inputs: Sequence[Path]) -> list[Path]:
    """Return the pictures of `inputs`; check the header of files given by name, and only list folders.

    Raises RestortError for a missing file, a file that is not a picture, and a folder without pictures.
    """
    from restort.evaluation.datasets import pictures
    from restort.imaging.decode import check_input

    found: list[Path] = []
    for place in inputs:
        if place.is_dir():
            found += pictures(place)
        else:
            check_input(place)
            found.append(place)
    return found


def samples(spec: Spec, inputs: Sequence[Path] = (), size: Size | None = None) -> Iterator[Sample]:
    """Yield the pictures `inputs` (see `files`), one sample each, or a synthetic sample without inputs.

    With `size` the middle of each picture is taken or, for a batch, that many parts along its diagonal.

    Raises UsageError for a picture smaller than `size`, and for dual-pixel networks, which take two pictures.
    """
    if not inputs:
        yield synthetic(spec, size or SIZE)
        return
    from restort.imaging.decode import read

    if spec.in_channels not in (1, 3):
        raise UsageError(
            f"these weights take {spec.in_channels} channels, a pair of dual-pixel pictures; give no INPUT"
        )
    for path in inputs:
        x = read(path).to_unit(spec.in_channels)
        yield Sample(path.name, x if size is None else _parts(x, size, path))


def _parts(x: Array, size: Size, path: Path) -> Array:
    """Cut `size` parts out of each picture of x (1 or 3, C, H, W): as many of (height, width) as the batch has."""
    batch, height, width = size
    spare_rows, spare_columns = x.shape[2] - height, x.shape[3] - width
    if min(spare_rows, spare_columns) < 0:
        raise UsageError(
            f"{path} has {x.shape[2]}x{x.shape[3]} pixels (height x width), less than --size {height}x{width}"
        )
    places = [0.5] if batch == 1 else [i / (batch - 1) for i in range(batch)]
    corners = [(round(place * spare_rows), round(place * spare_columns)) for place in places]
    return np.concatenate([x[:, :, top : top + height, left : left + width] for top, left in corners])
