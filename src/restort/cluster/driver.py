"""Deal out shards to workers, and survive those that die.

A worker has DEPTH shards: one in work, one waiting, so that it never waits for the driver. Its death says nothing of
which picture caused it, so the unfinished pictures of the shard in work go out again one by one; a picture whose worker
dies a second time has failed. What the worker finished is read from its records and not made again.

Nothing here grows with the number of pictures, but for counters and the first failures.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from restort.cluster.index import Index, records
from restort.cluster.shards import Died, Event, Finished, Shard, Started
from restort.errors import RestortError
from restort.imaging.folder import Job
from restort.inference.attempts import Attempts
from restort.inference.batch import FileResult, failed
from restort.inference.manifest import key_of
from restort.utils import interrupt

DEPTH = 2
DEATHS = 2
"""A picture that was alone in its shard when its worker died has failed; it died in a larger shard before."""
SHARD_SECONDS = 20.0
"""Work in a shard: long beside the moments at both ends of it when the network waits for files."""
FIRST_SHARD, LARGEST_SHARD = 4, 256
FRUITLESS_STARTS = 3
"""Workers that may die in a row before they have loaded their model."""
KEPT_FAILURES = 1000


class Workers(Protocol):
    """Workers in processes of their own. They are numbered by `hire`."""

    def hire(self) -> int:
        """Begin to start a worker; Started or Died follows."""

    def give(self, worker: int, shard: Shard) -> None:
        """Queue a shard for a worker that has started; Finished follows for each in order, or Died for all."""

    def wait(self, seconds: float) -> list[Event]:
        """Return what has happened, after at most `seconds` where nothing has."""


@dataclass
class Totals:
    """The outcome of a cluster run.

    failures   the first KEPT_FAILURES results that failed
    deaths     workers that died
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    megapixels: float = 0.0
    deaths: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    failures: list[FileResult] = field(default_factory=list)

    @property
    def files(self) -> int:
        return self.done + self.skipped + self.failed

    def add(self, result: FileResult) -> None:
        setattr(self, result.status, getattr(self, result.status) + 1)
        if result.status == "done" and result.result_size is not None:
            self.megapixels += result.result_size[0] * result.result_size[1] / 1e6
        if result.status == "failed" and len(self.failures) < KEPT_FAILURES:
            self.failures.append(result)

    def to_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "megapixels": round(self.megapixels, 3),
            "worker_deaths": self.deaths,
            "interrupted": self.interrupted,
        }


@dataclass
class _Hired:
    """A worker: what Started told of it, None until then, and its unfinished shards, oldest first."""

    started: Started | None = None
    shards: deque[Shard] = field(default_factory=deque)


class Driver:
    """One run.

    workers    where the shards go
    count      of workers to keep
    root       the output folder
    jobs       lists of any length, read as the workers need them
    index      the lines of the manifest; those of dead workers are added
    attempts   files that earlier runs have set aside
    seen       receives every result
    notify     receives a sentence about each worker that starts or dies
    """

    def __init__(
        self,
        workers: Workers,
        count: int,
        root: Path,
        jobs: Iterable[list[Job]],
        index: Index,
        attempts: Attempts,
        seen: Callable[[FileResult], None],
        notify: Callable[[str], None],
    ) -> None:
        self.totals = Totals()
        self._workers, self._count, self._root, self._index, self._attempts = (
            workers,
            count,
            root,
            index,
            attempts,
        )
        self._seen, self._notify = seen, notify
        self._listed = self._sound(jobs)
        self._hired: dict[int, _Hired] = {}
        self._again: deque[Shard] = deque()  # shards that dead workers left
        self._deaths: Counter[Path] = Counter()
        self._size = FIRST_SHARD
        self._next: Shard | None = None
        self._fruitless = 0

    def run(self) -> Totals:
        """Restore everything. Raises RestortError where no worker can start; KeyboardInterrupt sets `interrupted`."""
        start = time.perf_counter()
        try:
            self._next = self._cut()
            for _ in range(self._count if self._next is not None else 0):
                self._hire()
            while self._next is not None or self._again or any(each.shards for each in self._hired.values()):
                interrupt.check()
                for event in self._workers.wait(1.0):
                    self._handle(event)
        except KeyboardInterrupt:
            self.totals.interrupted = True
        self.totals.seconds = time.perf_counter() - start
        return self.totals

    def _hire(self) -> None:
        self._hired[self._workers.hire()] = _Hired()

    def _handle(self, event: Event) -> None:
        hired = self._hired.get(event.worker)
        if hired is None:
            return
        if isinstance(event, Started):
            hired.started, self._fruitless = event, 0
            self._notify(
                f"worker {event.worker} on {event.where} computes with {event.backend}, {event.precision}"
            )
        elif isinstance(event, Finished):
            self._measure(len(hired.shards.popleft().jobs), event.seconds)
            for result in event.results:
                self._end(result)
        else:
            del self._hired[event.worker]
            self._bury(hired, event)
        for worker, each in self._hired.items():
            while each.started is not None and len(each.shards) < DEPTH:
                shard = self._take()
                if shard is None:
                    return
                each.shards.append(shard)
                self._workers.give(worker, shard)

    def _bury(self, dead: _Hired, event: Died) -> None:
        """Recover what a dead worker finished, deal out the rest again, and replace it."""
        self.totals.deaths += 1
        self._notify(f"worker {event.worker} died ({event.why}); its pictures go to others")
        if dead.started is None:
            self._fruitless += 1
            if self._fruitless >= FRUITLESS_STARTS:
                if any(each.started is not None for each in self._hired.values()):
                    return  # the others go on without it
                raise RestortError(
                    f"{self._fruitless} workers died before they had loaded the model: {event.why}; see Ray's logs"
                )
            self._hire()
            return
        made = {record.target: record for record, _ in records(dead.started.records) if record.made}
        self._index.add(dead.started.records)
        suspected = False
        for shard in dead.shards:
            left = []
            for job in shard.jobs:
                record = made.get(key_of(self._root, job.target))
                if record is None:
                    left.append(job)
                else:
                    self._end(_done(job, record.details))
            if left and not suspected:  # the first shard with something left is the one that was in work
                suspected = True
                self._suspect(left, alone=len(shard.jobs) == 1)
            elif left:
                self._again.append(self._shard(left))
        if self._next is not None or self._again:
            self._hire()

    def _suspect(self, jobs: list[Job], *, alone: bool) -> None:
        for job in jobs:
            # A lone picture that was never in a larger shard has died once: it gets the second chance, too.
            self._deaths[job.source] += 1
            if alone and self._deaths[job.source] >= DEATHS:
                self._attempts.set_aside(job.source)
                error = RestortError(
                    f"{job.source} is set aside: {DEATHS} workers died while they had it in hand; --retry tries it "
                    "again"
                )
                self._end(failed(job, error))
            else:
                self._again.append(self._shard([job]))

    def _end(self, result: FileResult) -> None:
        self.totals.add(result)
        self._seen(result)

    def _take(self) -> Shard | None:
        if self._again:
            return self._again.popleft()
        shard = self._next
        if shard is not None:
            self._next = self._cut()
        return shard

    def _cut(self) -> Shard | None:
        """Cut the next shard from the list; None at its end."""
        jobs = []
        for job in self._listed:
            jobs.append(job)
            if len(jobs) >= self._size:
                break
        return self._shard(jobs) if jobs else None

    def _shard(self, jobs: list[Job]) -> Shard:
        return Shard(tuple(jobs), self._index.lines(key_of(self._root, job.target) for job in jobs))

    def _sound(self, lists: Iterable[list[Job]]) -> Iterator[Job]:
        """Yield the jobs that can be tried."""
        for jobs in lists:
            for job in jobs:
                try:
                    if job.problem is not None:
                        raise RestortError(job.problem)
                    self._attempts.check(job.source)
                except RestortError as error:
                    self._end(failed(job, error))
                else:
                    yield job

    def _measure(self, pictures: int, seconds: float) -> None:
        """Choose the size of the next shards so that they last SHARD_SECONDS; at most twice the present one."""
        fitting = int(pictures * SHARD_SECONDS / max(seconds, 1e-3))
        self._size = max(1, min(fitting, 2 * self._size, LARGEST_SHARD))


def _done(job: Job, details: Any) -> FileResult:
    """Make the result of a picture that its worker finished before it died."""
    width_height = details.get("result_size")
    size = tuple(width_height) if isinstance(width_height, list) and len(width_height) == 2 else None
    return FileResult(job.source, job.target, "done", result_size=size)
