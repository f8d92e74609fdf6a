"""Which files to restore and where each result goes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from restort.errors import UsageError
from restort.imaging import formats
from restort.imaging.encode import check_output


@dataclass(frozen=True)
class Job:
    """One picture to read and the file to write."""

    source: Path
    target: Path


def collect(inputs: Sequence[str | Path], output: str | Path, *, suffix: str | None = None) -> list[Job]:
    """List the jobs for `inputs` (pictures and folders) and `output` (a file or a folder), sorted by source.

    Folders are searched recursively for readable suffixes in upper or lower case. Hidden files and folders are skipped,
    links are followed once, and a folder that cannot be opened becomes a job that fails. A file given by name becomes a
    job whatever its suffix: reading it tells what is wrong.

    `output` is a folder if it exists as one, ends with a separator or has no suffix, or if the inputs are several or a
    folder; otherwise it is the file to write. In a folder results keep their name and their path relative to the input
    folder (below the name of that folder if there are several inputs). They keep their format, or become PNG if RestoRT
    does not write it; `suffix` (such as '.png') sets the format of all. If two results would get one name, as those of
    a.gif and a.png, the one that changes its suffix keeps both: a.gif.png. Pictures below the output folder are no
    inputs.

    Raises UsageError if an output is an input, two inputs have one output, the format of the output is unknown, or
    there is no picture.
    """
    sources = [Path(path) for path in inputs]
    if not sources:
        raise UsageError("there is no input; give a picture or a folder of pictures")
    if suffix is not None:
        check_output(Path("x" + suffix))
    folder = _is_folder(output, sources)
    output = Path(output)
    if not folder:
        check_output(output)
        jobs = [Job(sources[0], output)]
    else:
        jobs = _named_apart(_pairs(sources, output, suffix))
    _check(jobs, sources, output)
    return jobs


# os.path.isdir and isfile return False behind a folder without permission; those of Path raise PermissionError.
def _is_folder(output: str | Path, sources: list[Path]) -> bool:
    several = len(sources) > 1 or os.path.isdir(sources[0])
    path = Path(output)
    meant = os.path.isdir(path) or str(output).endswith(("/", os.sep)) or not path.suffix
    if several and (os.path.isfile(path) or not (meant or formats.output_format(path) is None)):
        raise UsageError(f"{output} is a file, but several pictures need a folder; give the name of a folder")
    return several or meant


def _pairs(sources: list[Path], output: Path, suffix: str | None) -> list[Job]:
    """Pair each picture with its target, every file once; two targets may still have one name."""
    jobs: dict[str, Job] = {}
    for source in sources:
        if os.path.isdir(source):
            if _same(source, output):
                raise UsageError(f"the output {output} is the input folder itself; choose another folder")
            base = output / source.resolve().name if len(sources) > 1 else output
            found = [(path, base / path.relative_to(source)) for path in sorted(_walk(source, output))]
        else:
            found = [(source, output / source.name)]
        for path, target in found:
            jobs.setdefault(os.path.realpath(path), Job(path, _with_suffix(target, suffix)))
    return list(jobs.values())


def _walk(folder: Path, output: Path) -> Iterator[Path]:
    """Yield the pictures below `folder`, except hidden ones and those below `output`; enter no folder twice."""
    entered: set[tuple[int, int]] = set()
    avoided = os.path.realpath(output)
    unreadable: list[Path] = []
    walk = os.walk(folder, followlinks=True, onerror=lambda error: unreadable.append(Path(error.filename)))
    for root, folders, files in walk:
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in entered or os.path.realpath(root) == avoided:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root, name)
            if (
                not name.startswith(".")
                and path.suffix.lower() in formats.READ_SUFFIXES
                and os.path.isfile(path)
            ):
                yield path
    yield from unreadable


def _with_suffix(target: Path, suffix: str | None) -> Path:
    if suffix is None:
        suffix = target.suffix if formats.output_format(target) else ".png"
    # `shot 1.5` has no suffix to replace, although with_suffix takes `.5` for one.
    known = target.suffix.lower() in formats.READ_SUFFIXES
    return target.with_suffix(suffix) if known else target.with_name(target.name + suffix)


def _key(path: Path) -> str:
    """A key that is equal for names of one file: without case on file systems that ignore it."""
    name = os.path.normcase(os.path.abspath(path))
    return name.casefold() if sys.platform == "darwin" else name


def _named_apart(jobs: list[Job]) -> list[Job]:
    """Give jobs with one target different names, by the suffix of their sources."""
    wanted = Counter(_key(job.target) for job in jobs)
    result = []
    for job in jobs:
        changed = job.source.suffix.lower() != job.target.suffix.lower()
        if wanted[_key(job.target)] > 1 and changed:
            name = job.source.name + job.target.suffix
            job = Job(job.source, job.target.with_name(name))
        result.append(job)
    return result


def _check(jobs: list[Job], sources: list[Path], output: Path) -> None:
    if not jobs:
        names = " and ".join(str(path) for path in sources)
        raise UsageError(f"there is no picture in {names}; these are read: {formats.READ_LIST}")
    read = {os.path.realpath(job.source): job.source for job in jobs}
    targets: dict[str, Path] = {}
    for job in jobs:
        overwritten = read.get(os.path.realpath(job.target))
        if overwritten is not None or _same(job.source, job.target):
            raise UsageError(
                f"the output {job.target} would overwrite the input {overwritten or job.source}; "
                "choose another output"
            )
        other = targets.setdefault(_key(job.target), job.source)
        if other is not job.source:
            raise UsageError(
                f"{other} and {job.source} would both be written to {job.target}; "
                "restore them into different folders"
            )


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)
