"""Compare two backends on the same inputs: the error of the output and of every block of the network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from restort.backends.registry import create
from restort.errors import UsageError
from restort.profiling.block_outputs import block_outputs
from restort.profiling.machine import provenance
from restort.profiling.samples import Sample
from restort.profiling.sides import Side
from restort.profiling.tensor_error import EPSILON, Spread, TensorError, definitions, tensor_error
from restort.runner import Array, Runner
from restort.tiling.padding import crop, pad_to_multiple
from restort.tiling.tiles import tile_layout
from restort.weights.checkpoint import Weights

FORMAT = 1
HEADS = ("tensor", "shape", "error", "max", "mean", "median", "p90", "p99", "rel. L2", "PSNR")


@dataclass(frozen=True)
class PictureError:
    """Errors for one input: its name and shape (N, C, H, W), the output and, on request, every block."""

    name: str
    shape: tuple[int, ...]
    output: TensorError
    blocks: dict[str, TensorError] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Errors of `backend` against the reference `against`; `total` is over the elements of all outputs."""

    model: str
    digest: str
    backend: Side
    against: Side
    epsilon: float
    pictures: list[PictureError]
    total: TensorError
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers with their definitions, as valid JSON: an infinite PSNR becomes null."""
        return {
            "format": FORMAT,
            "model": self.model,
            "weights_sha256": self.digest,
            "backend": {"name": self.backend.backend, "precision": self.backend.precision},
            "against": {"name": self.against.backend, "precision": self.against.precision},
            "epsilon": self.epsilon,
            "definitions": definitions(self.epsilon),
            "pictures": [
                {
                    "name": picture.name,
                    "shape": list(picture.shape),
                    "output": picture.output.to_json(),
                    "blocks": [{"name": n, **error.to_json()} for n, error in picture.blocks.items()],
                }
                for picture in self.pictures
            ],
            "all": self.total.to_json(),
            **self.provenance,
        }

    def worst_blocks(self) -> dict[str, TensorError]:
        """Return the errors of every block, each number the largest of all pictures; shapes are the first picture's."""
        names = self.pictures[0].blocks
        return {name: _worst([picture.blocks[name] for picture in self.pictures]) for name in names}

    def table(self) -> str:
        """Return text: two lines (absolute, relative) for each output, for all outputs together, and for each block."""
        rows = [list(HEADS)]
        for picture in self.pictures:
            rows += _lines(picture.name, picture.shape, picture.output)
        if len(self.pictures) > 1:
            rows += _lines("all", None, self.total)
        for name, error in self.worst_blocks().items():
            rows += _lines(name, error.shape, error)
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
        text = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        notes = [f"{name}: {meaning}" for name, meaning in definitions(self.epsilon).items()]
        if self.pictures[0].blocks and len(self.pictures) > 1:
            notes.append(f"blocks: each number is the largest of {len(self.pictures)} pictures")
        return "\n".join([f"{self.model}: {self.backend} against {self.against}", "", *text, "", *notes])


def compare(
    weights: Weights,
    backend: Side,
    against: Side,
    samples: Iterable[Sample],
    *,
    name: str | None = None,
    blocks: bool = False,
    epsilon: float = EPSILON,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run every sample through both backends, whole: padded by reflection, the output cropped.

    blocks      also compares the output of every block (restort.models.block_names), padding included.
    epsilon     is added to the reference's magnitude in relative errors.
    progress    called with the name of each sample before it runs.

    Raises UsageError where a sample is too large to be run whole, or a backend does not show its blocks;
    RestortError where a backend fails.
    """
    errors: list[PictureError] = []
    outputs: tuple[list[Array], list[Array]] = [], []
    described = provenance()
    with contextlib.ExitStack() as stack:
        runners = []
        for side in (backend, against):
            runner = create(weights, side.backend, side.precision, threads=threads)
            stack.callback(runner.close)
            runners.append(runner)
        for sample in samples:
            progress(sample.name)
            errors.append(_one(weights, runners, sample, blocks, epsilon, threads, outputs))
        sides = [Side(runner.name, runner.precision) for runner in runners]
    total = errors[0].output
    if len(errors) > 1:
        flat = [np.concatenate([y.reshape(-1) for y in ys]) for ys in outputs]
        total = tensor_error(*flat, epsilon=epsilon, peak=1.0)
    label = name or weights.path.stem
    return Comparison(label, weights.digest, sides[0], sides[1], epsilon, errors, total, described)


def _one(
    weights: Weights,
    runners: list[Runner],
    sample: Sample,
    blocks: bool,
    epsilon: float,
    threads: int | None,
    outputs: tuple[list[Array], list[Array]],
) -> PictureError:
    spec = weights.spec
    batch, _, height, width = sample.x.shape
    x = np.ascontiguousarray(pad_to_multiple(sample.x, spec.size_multiple), np.float32)
    if not tile_layout(height, width, spec, batch=batch).whole:
        raise UsageError(
            f"{sample.name} ({batch}x{height}x{width}) is too large to be compared whole in the memory that is "
            "free; take a part of it with --size"
        )
    for runner, kept in zip(runners, outputs, strict=True):
        kept.append(crop(runner(x), height * spec.scale, width * spec.scale))
    inside: dict[str, TensorError] = {}
    if blocks:
        a, b = (block_outputs(runner, weights, x, threads) for runner in runners)
        inside = {name: tensor_error(a[name], b[name], epsilon=epsilon) for name in b}
    error = tensor_error(outputs[0][-1], outputs[1][-1], epsilon=epsilon, peak=1.0)
    return PictureError(sample.name, sample.x.shape, error, inside)


def _worst(errors: list[TensorError]) -> TensorError:
    """Return the largest of each number; None where any is None."""

    def largest(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return max(known) if len(known) == len(values) else None

    def spread(kind: str) -> Spread | None:
        found = [getattr(error, kind) for error in errors]
        if None in found:
            return None
        return Spread(*(max(getattr(s, n) for s in found) for n in ("max", "mean", "median", "p90", "p99")))

    return TensorError(
        errors[0].shape,
        errors[0].epsilon,
        max(error.non_finite for error in errors),
        spread("absolute"),
        spread("relative"),
        largest([error.relative_l2 for error in errors]),
        None,
    )


def _lines(name: str, shape: tuple[int, ...] | None, error: TensorError) -> list[list[str]]:
    """Return the two rows of a tensor: absolute and relative error."""
    size = "" if shape is None else "x".join(map(str, shape))
    if error.absolute is None or error.relative is None:
        return [[name, size, f"{error.non_finite} elements are NaN or infinite", *[""] * 7]]
    l2 = "-" if error.relative_l2 is None else f"{error.relative_l2:.2e}"
    psnr = "-" if error.psnr is None else "inf" if math.isinf(error.psnr) else f"{error.psnr:.2f}"
    return [
        [name, size, "absolute", *_numbers(error.absolute), l2, psnr],
        ["", "", "relative", *_numbers(error.relative), "", ""],
    ]


def _numbers(spread: Spread) -> list[str]:
    return [f"{v:.2e}" for v in (spread.max, spread.mean, spread.median, spread.p90, spread.p99)]
