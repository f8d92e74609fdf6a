"""Restore many files with one model: a bad file does not stop the others, and no result is computed twice."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from restort.errors import RestortError
from restort.imaging.decode import MAX_PIXELS
from restort.imaging.encode import QUALITY
from restort.imaging.picture import Picture
from restort.imaging.row_reader import RowPicture
from restort.inference.attempts import Attempts
from restort.inference.damage import VERSION as DAMAGE_VERSION
from restort.inference.manifest import FOLDER, Fingerprint, Leftovers, Manifest, Record, State
from restort.inference.model import Model
from restort.inference.results import Computed, Restored
from restort.inference.stages import Stages
from restort.utils import interrupt
from restort.utils.cpu import default_threads
from restort.utils.files import check_free
from restort.utils.memory import available_memory

_log = logging.getLogger("restort")

READ_AHEAD_BYTES = 64 << 20
"""Larger files are not read ahead, so that two huge pictures are never in memory at once."""
EXPANSION = 16
"""Bytes of a decoded picture for a byte of its file, about that of a JPEG of good quality."""

Status = Literal["done", "skipped", "failed"]


class Job(Protocol):
    """The restoration of one file: `source` is read, `target` is written."""

    @property
    def source(self) -> Path: ...
    @property
    def target(self) -> Path: ...


class Observer(Protocol):
    """Receives the progress of a run: each file's begin, tiles and end."""

    def begin(self, source: Path) -> None: ...
    def tile(self, done: int, total: int) -> None: ...
    def end(self, result: FileResult) -> None: ...


@dataclass(frozen=True, slots=True)
class FileResult:
    """The outcome of one file.

    seconds             of computing and writing
    size, result_size   (width, height) in pixels of the input and the output
    tile                'whole', 'exact' or the tiles' 'WIDTHxHEIGHT'
    message             the error, or the reason for skipping
    notes               sentences for the user, such as metadata that the format cannot hold
    """

    source: Path
    target: Path
    status: Status
    seconds: float = 0.0
    size: tuple[int, int] | None = None
    result_size: tuple[int, int] | None = None
    backend: str | None = None
    precision: str | None = None
    tile: str | None = None
    message: str | None = None
    notes: tuple[str, ...] = ()
    model: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as a JSON object."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "size": self.size,
            "result_size": self.result_size,
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "tile": self.tile,
            "error": self.message if self.status == "failed" else None,
            "reason": self.message if self.status == "skipped" else None,
            "notes": list(self.notes),
        }


@dataclass
class Summary:
    """The outcome of a run.

    files         the results so far
    total         number of files of the run, those not reached included
    interrupted   by Ctrl-C or SIGTERM
    stages        where the time went
    """

    files: list[FileResult] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stages: Stages = field(default_factory=Stages)

    def count(self, status: Status) -> int:
        """Return the number of files with this status."""
        return sum(result.status == status for result in self.files)

    @property
    def megapixels(self) -> float:
        """Millions of pixels that this run wrote."""
        sizes = [result.result_size for result in self.files if result.status == "done"]
        return sum(size[0] * size[1] for size in sizes if size is not None) / 1e6

    def totals(self) -> dict[str, Any]:
        """Return the totals as a JSON object."""
        return {
            "files": self.total,
            "done": self.count("done"),
            "skipped": self.count("skipped"),
            "failed": self.count("failed"),
            "seconds": round(self.seconds, 3),
            "megapixels": round(self.megapixels, 3),
            "interrupted": self.interrupted,
        }


@dataclass(frozen=True)
class Options:
    """How files are read and written.

    overwrite    replace targets that exist
    quality      of JPEG, WebP and AVIF, 1 to 100
    max_pixels   refuse files that claim more; None for no limit
    retry        try files again that killed earlier runs
    """

    overwrite: bool = False
    quality: int = QUALITY
    max_pixels: int | None = MAX_PIXELS
    retry: bool = False


def restore_files(
    model: Model,
    jobs: Iterable[Job],
    root: Path | None,
    options: Options,
    observer: Observer,
    damage: Mapping[Path, str | None] | None = None,
) -> Summary:
    """Restore every job's source to its target.

    root     the output folder, whose manifest records which targets are up to date; None for a single output file,
             which is written unless it exists
    damage   the result of inference.damage.damage_of for each source, which the manifest records for later runs

    Without `overwrite`, an existing target that no run wrote is kept and counts as failed; with it every target is
    written again. Ctrl-C ends the run after the finished files and leaves no partial file (`interrupted` is set).
    Raises RestortError only where the output folder cannot be used.
    """
    jobs = list(jobs)
    if root is None:
        return run_jobs(model, jobs, None, None, options, observer, damage)
    manifest = Manifest(root)
    leftovers = Leftovers({job.target.parent for job in jobs} | {root, root / FOLDER})
    attempts = Attempts(root / FOLDER, retry=options.retry, notify=_log.warning)
    try:
        summary = run_jobs(model, jobs, manifest, attempts, options, observer, damage)
        if not summary.interrupted:
            start = time.perf_counter()
            try:
                leftovers.clean()
            except KeyboardInterrupt:
                summary.interrupted = True
            summary.seconds += time.perf_counter() - start
    finally:
        attempts.close()
    return summary


def run_jobs(
    model: Model,
    jobs: list[Job],
    manifest: Manifest | None,
    attempts: Attempts | None,
    options: Options,
    observer: Observer,
    damage: Mapping[Path, str | None] | None = None,
) -> Summary:
    """Make the target of every job with the records of the caller; the rest is as in `restore_files`.

    manifest   knows which targets are up to date; None where each is made unless it exists
    attempts   knows which files ended earlier runs; None to keep no record of them
    """
    summary = Summary(total=len(jobs))
    start = time.perf_counter()
    run = _Run(model, manifest, attempts, options, observer, damage or {})
    summary.stages = run.stages
    try:
        for result in run.results(jobs):
            summary.files.append(result)
            observer.end(result)
    except KeyboardInterrupt:
        summary.interrupted = True
        for result in run.written():  # what is being written is finished and counted
            summary.files.append(result)
            observer.end(result)
    finally:
        run.close()
        summary.seconds = time.perf_counter() - start
    return summary


@dataclass
class _Ready:
    """A job that this run has claimed.

    replace   the target may be replaced
    claim     releases the claim when it is closed
    bytes     estimated memory of its picture, from the size of its file
    content   the picture and its fingerprint, where reading ahead has begun
    writing   the outcome, where the result is being written
    """

    job: Job
    replace: bool
    claim: ExitStack
    bytes: int = 0
    content: Future[tuple[Picture | RowPicture, Fingerprint | None]] | None = None
    writing: Future[FileResult] | None = None


class _Run:
    """A pipeline of three stages: reading threads, the network in the calling thread, writing threads.

    Results come in the order of the jobs. The memory between the stages is bounded: pictures read ahead, and results
    that wait to be written.
    """

    def __init__(
        self,
        model: Model,
        manifest: Manifest | None,
        attempts: Attempts | None,
        options: Options,
        observer: Observer,
        damage: Mapping[Path, str | None],
    ) -> None:
        self.model, self.manifest, self.options, self.observer = model, manifest, options, observer
        self.attempts = attempts
        self.damage = damage
        self.recipe = model.recipe(options.quality)
        self.readers, self.writers = pool_sizes(default_threads(), on_gpu=model.device is not None)
        self.stages = Stages(readers=self.readers, writers=self.writers)
        self.reader = ThreadPoolExecutor(self.readers, thread_name_prefix="restort-read")
        self.writer = ThreadPoolExecutor(self.writers, thread_name_prefix="restort-write")
        self.room = available_memory() // 4
        self.open: list[_Ready] = []  # claimed, not finished
        self.done: deque[_Ready | FileResult] = (
            deque()
        )  # in the order of the jobs: being written, or finished

    def close(self) -> None:
        self.reader.shutdown(wait=False, cancel_futures=True)
        self.writer.shutdown(wait=True, cancel_futures=True)
        for ready in self.open:
            ready.claim.close()
        self.open.clear()

    def results(self, jobs: list[Job]) -> Iterator[FileResult]:
        """Yield the result of every job, in order but for those that another run has claimed, which come last."""
        left_to_others: list[Job] = []
        ahead: deque[_Ready | FileResult] = deque()
        for job in jobs:
            interrupt.check()
            step = self._prepare(job, wait=False)
            if step is None:
                left_to_others.append(job)
                continue
            ahead.append(step)
            if isinstance(step, _Ready):
                self._read_ahead(step)
            while self._enough(ahead):
                yield from self._advance(ahead.popleft())
        while ahead:
            yield from self._advance(ahead.popleft())
        yield from self.written()
        for job in left_to_others:
            interrupt.check()
            step = self._prepare(job, wait=True)
            assert step is not None
            yield from self._advance(step)
            yield from self.written()  # nothing is claimed while the next one is waited for

    def _enough(self, ahead: deque[_Ready | FileResult]) -> bool:
        """Return whether so much is being read that the network should go on."""
        reading = [step for step in ahead if isinstance(step, _Ready)]
        if not reading or isinstance(ahead[0], FileResult):
            return bool(ahead)
        return len(reading) > self.readers or sum(step.bytes for step in reading) > self.room

    def _advance(self, step: _Ready | FileResult) -> Iterator[FileResult]:
        """Run the network on the next picture and hand the result on; yield what has been written meanwhile."""
        self.done.append(step if isinstance(step, FileResult) else self._compute(step))
        yield from self.written(self.writers)

    def written(self, most: int = 0) -> Iterator[FileResult]:
        """Yield finished results in order; wait where more than `most`, or too many bytes, are being written."""
        while self.done:
            first = self.done[0]
            if isinstance(first, _Ready):
                assert first.writing is not None
                waiting = [step for step in self.done if isinstance(step, _Ready)]
                if (
                    not first.writing.done()
                    and len(waiting) <= most
                    and sum(s.bytes for s in waiting) <= self.room
                ):
                    return
                # in this order, since a signal may interrupt between any two lines
                with self.stages.time("wait_encode"):
                    self.done[0] = first.writing.result()
                self._release(first)
            else:
                self.done.popleft()
                yield first

    def _release(self, ready: _Ready) -> None:
        """Free the resources of a finished job. A second call completes one that a signal interrupted."""
        ready.content = None
        ready.claim.close()
        self.open = [other for other in self.open if other is not ready]
        if self.attempts is not None:
            self.attempts.end(ready.job.source)

    def _prepare(self, job: Job, *, wait: bool) -> _Ready | FileResult | None:
        """Claim a job for this run.

        Return a result if there is nothing to do; None if another run has the claim and `wait` is not set.
        """
        claim = ExitStack()
        try:
            if self._is_done(job):
                return self._skipped(job, "done")
            state: State = "unknown" if os.path.lexists(job.target) else "new"
            if self.manifest is not None:
                if not claim.enter_context(self.manifest.claim(job.target, wait=wait)):
                    return None
                self.manifest.refresh()
                state = self.manifest.state(job.source, job.target, self.recipe)
            result = self._skipped(job, state)
            if result is None and self.attempts is not None:
                self.attempts.check(job.source)
        except BaseException as error:
            claim.close()
            if not isinstance(error, Exception):
                raise
            return failed(job, error)
        if result is not None:
            claim.close()
            return result
        if self.attempts is not None:
            self.attempts.begin(job.source)
        ready = _Ready(job, self.options.overwrite or state in ("changed", "done"), claim)
        self.open.append(ready)
        return ready

    def _is_done(self, job: Job) -> bool:
        """Whether there is nothing to do, found without a claim, which takes ten times as long."""
        if self.manifest is None or self.options.overwrite:
            return False
        self.manifest.refresh()
        return self.manifest.state(job.source, job.target, self.recipe) == "done"

    def _skipped(self, job: Job, state: State) -> FileResult | None:
        """Return the result of a job that is up to date. Raises RestortError where its target must be kept."""
        if self.options.overwrite:
            return None
        if state == "done" and self.manifest is not None:
            known = self.manifest.details(job.target)
            return FileResult(
                job.source,
                job.target,
                "skipped",
                size=_pair(known.get("size")),
                result_size=_pair(known.get("result_size")),
                backend=_text(known.get("backend")),
                precision=_text(known.get("precision")),
                tile=_text(known.get("tile")),
                message="up to date",
                model=self.model.name,
            )
        if state == "foreign" and self.manifest is not None:
            raise RestortError(
                f"{job.target} was made from {self.manifest.maker(job.target)}; "
                "use --overwrite to replace it, or another output folder"
            )
        if state == "unknown":
            check_free(job.target, overwrite=False)
        return None

    def _read_ahead(self, ready: _Ready) -> None:
        try:
            size = ready.job.source.stat().st_size
        except OSError:
            return  # reading it reports the error
        ready.bytes = EXPANSION * size
        if size <= READ_AHEAD_BYTES:
            ready.content = self.reader.submit(self._read, ready.job)

    def _read(self, job: Job) -> tuple[Picture | RowPicture, Fingerprint | None]:
        with self.stages.time("decode"):
            before = job.source.stat().st_mtime_ns if job.source.is_file() else None
            picture = self.model.open(job.source, job.target, max_pixels=self.options.max_pixels)
            if self.manifest is None:
                return picture, None
            content = Fingerprint.of(job.source)
            if content.mtime_ns != before:
                raise RestortError(f"{job.source} changed while it was read; run again when it is complete")
            return picture, content

    def _compute(self, ready: _Ready) -> _Ready | FileResult:
        """Run the network on a picture and begin to write the result."""
        job, start = ready.job, time.perf_counter()
        self.observer.begin(job.source)
        try:
            with self.stages.time("wait_decode"):
                picture, content = ready.content.result() if ready.content is not None else self._read(job)
            ready.content = None
            with self.stages.time("network"):
                computed = self.model.compute(
                    job.source,
                    job.target,
                    picture,
                    max_pixels=self.options.max_pixels,
                    quality=self.options.quality,
                    progress=self._tile,
                )
            if isinstance(picture, RowPicture) and content is not None:
                self._check_unchanged(job, computed, content)
        except Exception as error:
            self._release(ready)
            return failed(job, error, time.perf_counter() - start)
        ready.bytes = computed.nbytes
        seconds = time.perf_counter() - start
        ready.writing = self.writer.submit(self._write, ready, content, computed, picture.notes, seconds)
        return ready

    def _check_unchanged(self, job: Job, computed: Computed, content: Fingerprint) -> None:
        """Discard the result of a picture that changed while it was read by rows."""
        if job.source.stat().st_mtime_ns != content.mtime_ns:
            if computed.written is not None:
                computed.written.unlink(missing_ok=True)
            raise RestortError(f"{job.source} changed while it was read; run again when it is complete")

    def _tile(self, done: int, total: int) -> None:
        interrupt.check()
        self.observer.tile(done, total)

    def _write(
        self,
        ready: _Ready,
        content: Fingerprint | None,
        computed: Computed,
        notes: tuple[str, ...],
        seconds: float,
    ) -> FileResult:
        """Write a result between its two lines in the manifest; runs in a thread of its own."""
        job, manifest, start = ready.job, self.manifest, time.perf_counter()
        try:
            record: Record | None = None
            if manifest is not None and content is not None:
                record = manifest.begin(job.source, job.target, content, self.recipe)
            with self.stages.time("encode"):
                restored = self.model.store(
                    computed, notes, overwrite=ready.replace, quality=self.options.quality
                )
            if manifest is not None and record is not None:
                manifest.finish(record, job.target, self._details(job, restored))
        except Exception as error:
            return failed(job, error, seconds + time.perf_counter() - start)
        return FileResult(
            job.source,
            job.target,
            "done",
            seconds + time.perf_counter() - start,
            restored.size,
            restored.result_size,
            restored.backend,
            restored.precision,
            restored.tile,
            notes=restored.notes,
            model=self.model.name,
        )

    def _details(self, job: Job, restored: Restored) -> dict[str, Any]:
        """Return what the manifest records about a result."""
        details: dict[str, Any] = {
            "size": restored.size,
            "result_size": restored.result_size,
            "backend": restored.backend,
            "precision": restored.precision,
            "tile": restored.tile,
        }
        if job.source in self.damage:
            details["damage"] = [DAMAGE_VERSION, self.damage[job.source]]
        return details


def pool_sizes(cores: int, on_gpu: bool = False) -> tuple[int, int]:
    """Return the numbers of reading and writing threads; encoding takes two to four times as long as decoding.

    On few cores one of each, because the network uses all cores; a network on a GPU leaves the cores to these threads.
    """
    readers = max(1, min(4, cores // 4))
    return readers, max(1, min(16, cores - readers) if on_gpu else min(8, cores // 2))


def failed(job: Job, error: Exception, seconds: float = 0.0) -> FileResult:
    """Make the result of a job that failed."""
    return FileResult(job.source, job.target, "failed", seconds, message=error_line(error))


def error_line(error: BaseException) -> str:
    """Return one sentence for any error. RESTORT_DEBUG=1 and --verbose print the traceback of an unexpected one."""
    if isinstance(error, RestortError):
        return str(error)
    if os.environ.get("RESTORT_DEBUG") or _log.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return "not enough memory; use smaller tiles (--tile)"
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else text[:197] + "..."
    return f"unexpected error: {type(error).__name__}: {text} (set RESTORT_DEBUG=1 for a traceback)"


def _pair(value: Any) -> tuple[int, int] | None:
    """Return the size (width, height) in a manifest's value; None for anything else."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(number) is int for number in value):
        return value[0], value[1]
    return None


def _text(value: Any) -> str | None:
    return sys.intern(value) if isinstance(value, str) else None  # few words, in very many results
