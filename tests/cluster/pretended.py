"""A cluster run of pictures that are not there, to measure the driver: `python pretended.py COUNT FOLDER`.

Listing, sharding, the index and the records of a finished run are real; the workers answer at once. Prints the peak
memory of this process in MB.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restort.cluster.driver import Driver
from restort.cluster.index import Index
from restort.cluster.shards import Event, Finished, Shard, Started
from restort.imaging import folder
from restort.inference.attempts import Attempts
from restort.inference.batch import FileResult
from restort.inference.manifest import Fingerprint, Record

FLAT = 100_000
"""Pictures in each folder."""


class Instant:
    """Workers that have made a picture as soon as they are given it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.hired = 0

    def hire(self) -> int:
        self.hired += 1
        self.events.append(Started(self.hired, Path("none"), "here", "none", "fp32"))
        return self.hired

    def give(self, worker: int, shard: Shard) -> None:
        assert len(shard.lines) == len(shard.jobs)
        made = tuple(FileResult(job.source, job.target, "done", result_size=(1, 1)) for job in shard.jobs)
        self.events.append(Finished(worker, made, 1.0))

    def wait(self, seconds: float) -> list[Event]:
        events, self.events = self.events, []
        return events


def peak_rss() -> int:
    """Peak resident memory of this program in bytes. getrusage would also count that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1000
    return int(next(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line)) * 1024


def walk(count: int) -> Any:
    """What os.walk would yield for a tree of `count` pictures."""

    def walk(top: Path, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for first in range(0, count, FLAT):
            names = [f"picture-{number:09d}.jpg" for number in range(first, min(first + FLAT, count))]
            yield f"{top}/{first // FLAT:05d}", [], names

    return walk


def main(count: int, root: Path) -> None:
    manifest = root / "manifest.jsonl"
    content = Fingerprint(1000, 1, "0" * 64)
    with manifest.open("wb") as file:
        for number in range(count):
            target = f"{number // FLAT:05d}/picture-{number:09d}.jpg"
            file.write(
                Record(target, f"/in/{target}", content, {"pixels": 1}, content, {"size": (1, 1)}).line()
            )
    os.walk, os.path.isfile = walk(count), lambda path: True  # type: ignore[assignment]
    serial = iter(range(1 << 60))
    folder._identity = lambda path: (0, next(serial))  # type: ignore[assignment]
    index = Index()
    index.add(manifest)
    jobs = folder.stream(Path("/in"), root)
    attempts = Attempts(root / ".restort")
    totals = Driver(Instant(), 8, root, jobs, index, attempts, lambda result: None, lambda line: None).run()
    attempts.close()
    peak = peak_rss() / 1e6
    print(json.dumps({"done": totals.done, "seconds": totals.seconds, "peak_mb": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
