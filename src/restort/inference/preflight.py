"""Which jobs cannot be done, told before a model is opened for the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from restort.imaging.decode import check_input
from restort.imaging.folder import Job
from restort.inference.batch import FileResult, Options, failed
from restort.utils.files import check_free


def preflight(
    jobs: Iterable[Job], options: Options, *, named: Iterable[Path], alone: bool
) -> tuple[list[Job], list[FileResult]]:
    """The jobs to do, and the failures of the others.

    named   inputs that were given by name: each is looked at. Of those found in folders only as many are as it takes
            to find one that can be read: to open all of a large folder takes long, and a bad one is told in its turn.
    alone   the target is a single file, of which no manifest tells whether it may be made again.
    """
    named = frozenset(named)
    sound: list[Job] = []
    refused: list[FileResult] = []
    for job in jobs:
        try:
            if not sound or job.source in named:
                check_input(job.source, options.max_pixels)
            if alone:
                check_free(job.target, options.overwrite)
            sound.append(job)
        except Exception as error:
            refused.append(failed(job, error))
    return sound, refused
