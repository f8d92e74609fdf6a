"""What the driver and its workers tell one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.imaging.folder import Job
from restort.inference.batch import FileResult, Options


@dataclass(frozen=True)
class Setup:
    """What a worker needs once.

    root     the output folder, an absolute path on storage that all machines share
    model    a name of the catalogue, or a file of weights
    load     further arguments of restort.load
    version  of the driver's restort, which the workers must have too
    """

    root: Path
    model: str | Path
    load: Mapping[str, Any]
    files: Options
    version: str


@dataclass(frozen=True)
class Shard:
    """Jobs for one worker, and the lines of the manifest about their targets."""

    jobs: tuple[Job, ...]
    lines: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Started:
    """A worker has loaded its model. `records` is the file of its lines, `where` its machine."""

    worker: int
    records: Path
    where: str
    backend: str
    precision: str


@dataclass(frozen=True)
class Finished:
    """A worker has finished the oldest shard that it was given."""

    worker: int
    results: tuple[FileResult, ...]
    seconds: float


@dataclass(frozen=True)
class Died:
    """A worker has gone, with every shard that it was given and has not finished."""

    worker: int
    why: str


Event = Started | Finished | Died
