"""Find jobs that cannot succeed before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from restort.errors import RestortError
from restort.imaging.decode import check_input
from restort.imaging.folder import Job
from restort.inference.batch import FileResult, Options, failed
from restort.utils.files import check_free


def preflight(
    jobs: Iterable[Job], options: Options, *, named: Iterable[Path], alone: bool
) -> tuple[list[Job], list[FileResult]]:
    """Return the jobs to run, and the results of those that fail.

    named   inputs that the user named: each is opened. Files found in folders are opened only until one can be read:
            opening all of a large folder takes long, and a bad file is reported in its turn.
    alone   the target is a single file, for which no manifest says whether a run made it
    """
    named = frozenset(named)
    sound: list[Job] = []
    refused: list[FileResult] = []
    for job in jobs:
        try:
            if job.problem is not None:
                raise RestortError(job.problem)
            if not sound or job.source in named:
                check_input(job.source, options.max_pixels)
            if alone:
                check_free(job.target, options.overwrite)
            sound.append(job)
        except Exception as error:
            refused.append(failed(job, error))
    return sound, refused
