"""Which files to restore and where each result goes."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.errors import UsageError
from restort.imaging import formats
from restort.imaging.encode import check_output

CHUNK = 1000
"""Jobs in a list of `stream`, and a few more."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to read and the file to write; `problem` says why it cannot be done, None where it can."""

    source: Path
    target: Path
    problem: str | None = None


def expand(inputs: Sequence[str | Path]) -> list[Path]:
    """Replace patterns such as `*.jpg` by the files that they match, sorted; Windows' shells leave this to programs.

    A file that has the name of a pattern is taken as it is. Raises UsageError where nothing matches.
    """
    found: list[Path] = []
    for given in inputs:
        if os.path.lexists(given) or not glob.has_magic(str(given)):
            found.append(Path(given))
            continue
        matches = sorted(glob.glob(str(given), recursive=True))
        if not matches:
            raise UsageError(f"no file matches {given}; check the pattern")
        found += map(Path, matches)
    return found


def beside(
    inputs: Sequence[Path],
    ending: str,
    *,
    suffix: str | None = None,
    left_out: list[Path] | None = None,
) -> tuple[list[Job], Path | None]:
    """List the jobs where no output is named, and the output folder, None where there is none.

    A picture NAME.EXT becomes NAME_ending.EXT beside it, a folder NAME the folder NAME_ending. Raises UsageError like
    `collect`, and for a folder among several inputs.
    """
    folders = [path for path in inputs if os.path.isdir(path)]
    if folders and len(inputs) > 1:
        raise UsageError(f"{folders[0]} is a folder among several inputs; name the output folder with -o")
    if folders:
        folder, whole = folders[0], folders[0].resolve()
        above = whole.parent if folder.name in ("", "..") else folder.parent
        output = above / f"{whole.name}_{ending}"
        return collect(inputs, output, suffix=suffix, left_out=left_out), output
    jobs = []
    for source in dict.fromkeys(inputs):
        target = _with_suffix(source, suffix)
        jobs.append(Job(source, target.with_name(f"{target.stem}_{ending}{target.suffix}")))
    return _checked(jobs, list(inputs)), None


def collect(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    suffix: str | None = None,
    left_out: list[Path] | None = None,
) -> list[Job]:
    """List the jobs for `inputs` (pictures and folders) and `output` (a file or a folder), sorted by source.

    Folders are searched recursively for readable suffixes in upper or lower case. Hidden files and folders are skipped,
    links are followed once, and a folder that cannot be opened becomes a job that fails. A file given by name becomes a
    job whatever its suffix: reading it tells what is wrong.

    `output` is a folder if it exists as one, ends with a separator or has no suffix, or if the inputs are several or a
    folder; otherwise it is the file to write. In a folder results keep their name and their path relative to the input
    folder (below the name of that folder if there are several inputs). They keep their format, or become PNG if RestoRT
    does not write it; `suffix` (such as '.png') sets the format of all. If two results would get one name, as those of
    a.gif and a.png, the one that changes its suffix keeps both: a.gif.png; the later of two that still have one name
    has a `problem`. Pictures below the output folder are no inputs. `left_out` receives the files in folders whose
    suffixes name pictures that cannot be read, such as .heic.

    Raises UsageError if an output is an input, the format of the output is unknown, or there is no picture.
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
        jobs = _named_apart(_pairs(sources, output, suffix, left_out))
    return _checked(jobs, sources)


def stream(
    folder: Path, output: Path, *, suffix: str | None = None, left_out: list[Path] | None = None
) -> Iterator[list[Job]]:
    """Yield the jobs of `collect` for one input folder in lists of about CHUNK, so that millions fit in memory.

    A link to a picture is a picture of its own here. Raises UsageError as `collect` does, but not for an empty folder.
    """
    if suffix is not None:
        check_output(Path("x" + suffix))
    if _same(folder, output):
        raise UsageError(f"the output {output} is the input folder itself; choose another folder")
    for parent, paths in itertools.groupby(_walk(folder, output, left_out), key=lambda path: path.parent):
        base = output / parent.relative_to(folder) if parent.is_relative_to(folder) else output
        names = sorted((path.name for path in paths), key=lambda name: (_first(name), name))
        jobs: list[Job] = []
        # Results can share a name only where the inputs share their first part, as a.gif and a.gif.png do.
        for _, alike in itertools.groupby(names, key=_first):
            jobs += [Job(parent / name, _with_suffix(base / name, suffix)) for name in alike]
            if len(jobs) >= CHUNK:
                yield _checked(_named_apart(jobs), [folder])
                jobs = []
        if jobs:
            yield _checked(_named_apart(jobs), [folder])


def _first(name: str) -> str:
    return name.partition(".")[0].casefold()


# os.path.isdir and isfile return False behind a folder without permission; those of Path raise PermissionError.
def _is_folder(output: str | Path, sources: list[Path]) -> bool:
    several = len(sources) > 1 or os.path.isdir(sources[0])
    path = Path(output)
    meant = os.path.isdir(path) or str(output).endswith(("/", os.sep)) or not path.suffix
    if several and (os.path.isfile(path) or not (meant or formats.output_format(path) is None)):
        raise UsageError(f"{output} is a file, but several pictures need a folder; give the name of a folder")
    return several or meant


def _pairs(sources: list[Path], output: Path, suffix: str | None, left_out: list[Path] | None) -> list[Job]:
    """Pair each picture with its target, every file once; two targets may still have one name."""
    jobs: dict[str, Job] = {}
    real = _RealPaths()
    for source in sources:
        if os.path.isdir(source):
            if _same(source, output):
                raise UsageError(f"the output {output} is the input folder itself; choose another folder")
            base = output / source.resolve().name if len(sources) > 1 else output
            # Paths compare ten times as slowly as their texts; Windows ignores case, which only paths know.
            order = (lambda path: os.fspath(path).split(os.sep)) if os.name == "posix" else None
            paths = sorted(_walk(source, output, left_out), key=order)
            found = [(path, base / path.relative_to(source)) for path in paths]
        else:
            found = [(source, output / source.name)]
        for path, target in found:
            jobs.setdefault(real(path), Job(path, _with_suffix(target, suffix)))
    return list(jobs.values())


def _walk(folder: Path, output: Path, left_out: list[Path] | None) -> Iterator[Path]:
    """Yield the pictures below `folder`, except hidden ones and those below `output`; enter no folder twice."""
    entered: set[tuple[int, int]] = set()
    output_identity = _identity(output)
    readable = formats.read_suffixes()
    unreadable: list[Path] = []
    walk = os.walk(folder, followlinks=True, onerror=lambda error: unreadable.append(Path(error.filename)))
    for root, folders, files in walk:
        here = _identity(Path(root))
        if here is not None and here == output_identity:
            _check_same_path(Path(root), output)
        if here is None or here in entered or here == output_identity:
            folders.clear()
            continue
        entered.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root, name)
            suffix = path.suffix.lower()
            if name.startswith(".") or not os.path.isfile(path):
                continue
            if suffix in readable:
                yield path
            elif left_out is not None and suffix in formats.KNOWN_SUFFIXES:
                left_out.append(path)
    yield from unreadable


def _check_same_path(found: Path, output: Path) -> None:
    """Raise UsageError where a folder of the inputs is the output by another path, as a bind mount makes it.

    An output folder below the input holds results. Behind a mount it may well hold inputs.
    """
    if os.path.realpath(found) != os.path.realpath(output):
        raise UsageError(
            f"the output {output} is {found}, a folder of the inputs, under another path; choose another output, or "
            f"{found} itself if it holds results"
        )


def _with_suffix(target: Path, suffix: str | None) -> Path:
    if suffix is None:
        suffix = target.suffix if formats.output_format(target) else formats.result_suffix(target)
    # `shot 1.5` has no suffix to replace, although with_suffix takes `.5` for one.
    if suffix == target.suffix:
        return target
    known = target.suffix.lower() in formats.read_suffixes()
    return target.with_suffix(suffix) if known else target.with_name(target.name + suffix)


def _key(path: Path) -> str:
    """A key that is equal for names of one file: without case on file systems that ignore it."""
    name = os.path.normcase(os.path.abspath(path))
    return name.casefold() if sys.platform == "darwin" else name


def _named_apart(jobs: list[Job]) -> list[Job]:
    """Give jobs with one target different names, by the suffix of their sources."""
    keys = [_key(job.target) for job in jobs]
    wanted = Counter(keys)
    if len(wanted) == len(jobs):
        return jobs
    result = []
    for job, key in zip(jobs, keys, strict=True):
        changed = job.source.suffix.lower() != job.target.suffix.lower()
        if wanted[key] > 1 and changed:
            name = job.source.name + job.target.suffix
            job = Job(job.source, job.target.with_name(name))
        result.append(job)
    return result


class _RealPaths:
    """os.path.realpath, which follows the links of every folder above a file, for many files in few folders."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: Path) -> str:
        folder, name = os.path.split(path)
        if os.name != "posix" or name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and the inode of a file or folder; None where it is not there or cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _checked(jobs: list[Job], sources: list[Path]) -> list[Job]:
    """Return the jobs, those whose target is taken with a problem. Raises UsageError where an input is in danger."""
    if not jobs:
        names = " and ".join(str(path) for path in sources)
        raise UsageError(f"there is no picture in {names}; these are read: {formats.READ_LIST}")
    # By path for inputs that are not there, and by device and inode for the many names that one file can have.
    real = _RealPaths()
    read: dict[Any, Path] = {real(job.source): job.source for job in jobs}
    read |= {found: job.source for job in jobs if (found := _identity(job.source)) is not None}
    targets: dict[str, Path] = {}
    result = []
    for job in jobs:
        overwritten = read.get(real(job.target)) or read.get(_identity(job.target))
        if overwritten is not None:
            raise UsageError(
                f"the output {job.target} would overwrite the input {overwritten}; choose another output"
            )
        other = targets.setdefault(_key(job.target), job.source)
        if other is not job.source:
            problem = (
                f"{other} and {job.source} would both be written to {job.target}; "
                "restore them into different folders"
            )
            job = dataclasses.replace(job, problem=problem)
        result.append(job)
    return result


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)
