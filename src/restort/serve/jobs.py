"""Jobs that outlive a connection and a restart: a table in SQLite, and a folder of files for each.

WORK/jobs.sqlite
WORK/jobs/ID/NAME            the picture as it was sent
WORK/jobs/ID/result.EXT      its result
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.errors import RestortError
from restort.serve.request import Request
from restort.utils.files import make_folder

_COLUMNS = "id, key, name, request, state, error, model, created, finished, seconds, width, height"
UNFINISHED = ("queued", "running")


class Full(RestortError):
    """The work folder holds as much as it may."""


@dataclass(frozen=True)
class Job:
    """One row.

    key        whose it is
    name       of the file that was sent
    state      'queued', 'running', 'done', 'failed', 'cancelled' or 'expired'
    created    seconds since 1970; finished likewise, None before
    seconds    of network; width, height of the result
    """

    id: str
    key: str
    name: str
    request: Request
    state: str
    error: str | None = None
    model: str | None = None
    created: float = 0.0
    finished: float | None = None
    seconds: float | None = None
    width: int | None = None
    height: int | None = None


class JobStore:
    """The jobs of one work folder, which belongs to one server at a time; threads may share it.

    quota       bytes that the folder may hold
    lifetime    seconds that a finished job is kept
    """

    def __init__(self, folder: Path, *, quota: int, lifetime: float) -> None:
        from filelock import FileLock, Timeout

        self.folder, self.quota, self.lifetime = folder, quota, lifetime
        make_folder(folder, private=True)
        make_folder(folder / "jobs", private=True)
        self._owner = FileLock(folder / "server.lock", thread_local=False)  # another thread releases it
        try:
            self._owner.acquire(timeout=0)
        except Timeout:
            raise RestortError(
                f"another server uses the work folder {folder}; give another one with --work"
            ) from None
        self._lock = threading.Lock()
        self._table = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
        self._table.execute("PRAGMA journal_mode=WAL")
        self._table.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, key TEXT, name TEXT, request TEXT, state TEXT, "
            "error TEXT, model TEXT, created REAL, finished REAL, seconds REAL, width INTEGER, height INTEGER)"
        )

    def close(self) -> None:
        with self._lock:
            self._table.close()
        self._owner.release()

    def new_folder(self) -> tuple[str, Path]:
        """Make the folder of a new job; return its id and the folder."""
        identity = uuid.uuid4().hex
        return identity, make_job_folder(self.folder / "jobs" / identity)

    def check_quota(self, more: int = 0) -> None:
        """Raise Full where the work folder is."""
        used = self.used()
        if used + more > self.quota:
            raise Full(
                f"the server's work folder is full ({used / 1e9:.2f} of {self.quota / 1e9:.2f} GB); delete jobs, or "
                "try again later"
            )

    def used(self) -> int:
        """Bytes of all files of jobs."""
        return sum(p.stat().st_size for p in (self.folder / "jobs").rglob("*") if p.is_file())

    def add(self, job: Job) -> None:
        values = (
            job.id, job.key, job.name, json.dumps(job.request.to_json()), job.state, job.error, job.model,
            job.created or time.time(), job.finished, job.seconds, job.width, job.height,
        )  # fmt: skip
        with self._lock:
            self._table.execute(f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * 12)})", values)

    def update(self, identity: str, **values: object) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        with self._lock:
            self._table.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values.values(), identity))

    def find(self, identity: str) -> Job | None:
        return next(iter(self._select("WHERE id = ?", identity)), None)

    def unfinished(self) -> list[Job]:
        """Jobs that a server which ended left behind, the oldest first."""
        return self._select(
            f"WHERE state IN ({', '.join('?' * len(UNFINISHED))}) ORDER BY created", *UNFINISHED
        )

    def of_key(self, key: str, most: int = 200) -> list[Job]:
        """The newest jobs of a key."""
        return self._select("WHERE key = ? ORDER BY created DESC LIMIT ?", key, most)

    def remove(self, identity: str) -> None:
        """Forget a job and its files."""
        with self._lock:
            self._table.execute("DELETE FROM jobs WHERE id = ?", (identity,))
        shutil.rmtree(self.folder / "jobs" / identity, ignore_errors=True)

    def sweep(self) -> None:
        """Remove finished jobs beyond their lifetime, and folders without a job that are as old."""
        limit = time.time() - self.lifetime
        for job in self._select("WHERE finished IS NOT NULL AND finished < ?", limit):
            self.remove(job.id)
        with self._lock:
            known = {row[0] for row in self._table.execute("SELECT id FROM jobs")}
        for folder in (self.folder / "jobs").iterdir():
            if folder.name not in known and folder.stat().st_mtime < limit:
                shutil.rmtree(folder, ignore_errors=True)

    def source(self, job: Job) -> Path:
        return self.folder / "jobs" / job.id / job.name

    def target(self, job: Job) -> Path:
        return self.folder / "jobs" / job.id / f"result.{job.request.format}"

    def _select(self, condition: str, *values: object) -> list[Job]:
        with self._lock:
            rows = self._table.execute(f"SELECT {_COLUMNS} FROM jobs {condition}", values).fetchall()
        return [_job(row) for row in rows]


def _job(row: tuple[Any, ...]) -> Job:
    identity, key, name, request, *rest = row
    return Job(identity, key, name, Request(**json.loads(request)), *rest)


def make_job_folder(folder: Path) -> Path:
    make_folder(folder, private=True)
    return folder
