"""A worker: one model in one process, which restores the shards that it is given. It knows nothing of Ray."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from restort.cluster.shards import Setup, Shard
from restort.errors import RestortError
from restort.inference.batch import FileResult, run_jobs
from restort.inference.manifest import FOLDER, WORKERS, Manifest, Record, key_of
from restort.inference.model import load
from restort.utils.files import check_no_link
from restort.version import __version__


class WorkerManifest(Manifest):
    """The records of one worker: it appends to a file of its own and knows only the targets of its present shard.

    The lock of that file is held until `close`, so that others see whether its worker lives.
    """

    def __init__(self, root: Path) -> None:
        folder = root / FOLDER / WORKERS
        check_no_link(folder, folder=True)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = folder / f"{name}.jsonl"
        self._records: dict[str, Record] = {}
        super().__init__(root, self.path)
        self._lock.acquire()

    def refresh(self) -> None:
        """Read nothing: no one else writes to this file."""

    @contextmanager
    def claim(self, target: Path, *, wait: bool = False) -> Iterator[bool]:
        """Claim nothing: the driver gives each picture to one worker, and the locks would not suffice for many."""
        yield True

    def expect(self, lines: Iterable[bytes]) -> None:
        """Know these lines, and nothing else."""
        records = filter(None, map(Record.parse, lines))
        self._records = {record.target: record for record in records}

    def _record(self, target: Path) -> Record | None:
        return self._records.get(key_of(self.root, target))

    def close(self) -> None:
        self._lock.release()


class Worker:
    """A model and the records of this worker, made by `start` and freed by `close`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def start(self) -> tuple[Path, str, str, str]:
        """Load the model; return (file of the records, machine, backend, precision). Raises RestortError."""
        setup = self._setup
        if setup.version != __version__:
            raise RestortError(
                f"restort {__version__} is installed on {socket.gethostname()}, but the driver is {setup.version}; "
                "install one version on all machines"
            )
        self._model = load(setup.model, **setup.load)
        self._manifest = WorkerManifest(setup.root)
        return self._manifest.path, socket.gethostname(), self._model.backend, self._model.precision

    def restore(self, shard: Shard) -> tuple[list[FileResult], float]:
        """Restore the pictures of a shard; return the results and the seconds that it took."""
        start = time.perf_counter()
        self._manifest.expect(shard.lines)
        summary = run_jobs(self._model, list(shard.jobs), self._manifest, None, self._setup.files, _Unseen())
        return summary.files, time.perf_counter() - start

    def close(self) -> None:
        self._model.close()
        self._manifest.close()


class _Unseen:
    """An observer without eyes: the driver shows the progress."""

    def begin(self, source: Path) -> None: ...
    def tile(self, done: int, total: int) -> None: ...
    def end(self, result: FileResult) -> None: ...
