"""A record of the files that a run is processing, so that the next run knows a file that killed it.

Every run keeps OUTPUT/.restort/attempts/NAME.json with the sources that it reads or restores, and holds a lock beside
it until it ends. A record whose lock is free is of a run that died. Its sources are suspects: each is first read in its
own process (restort.imaging.trial) and skipped if that process dies; after DEATHS runs it is skipped without a trial.
One death is no proof, because a run may also be killed from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from restort.errors import RestortError
from restort.imaging.trial import survives
from restort.utils.files import check_no_link, write_bytes

DEATHS = 3
_SUSPECTS = "suspects.json"


class Attempts:
    """The record of one run in an output folder, and the suspects of earlier runs.

    retry   forget the suspects
    notify  receives a sentence about each file that is tried in a process of its own

    Without write access nothing is recorded; the manifest reports a folder that cannot be used.
    """

    def __init__(
        self, folder: Path, *, retry: bool = False, notify: Callable[[str], None] | None = None
    ) -> None:
        self._folder = folder / "attempts"
        self._notify = notify
        self._file = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self._lock = FileLock(self._file.with_suffix(".lock"), thread_local=False)
        self._open: list[str] = []
        self._usable = False
        self._suspects: dict[str, int] = {}
        with contextlib.suppress(OSError, Timeout, RestortError):
            check_no_link(self._folder, folder=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._usable = True
            self._suspects = {} if retry else self._known()
            self._bury()
            if retry:
                self._suspects = {}
            self._store()

    def check(self, source: Path) -> None:
        """Raise RestortError for a file that killed earlier runs; read a suspect in its own process first."""
        if not self._suspects:
            return
        key = key_of(source)
        deaths = self._suspects.get(key, 0)
        if not deaths:
            return
        end = f"{deaths} runs died while they had it in hand" if deaths >= DEATHS else None
        if end is None:
            if self._notify is not None:
                self._notify(
                    f"{source} was in hand when an earlier run died; it is tried in a process of its own"
                )
            end = survives(source)
        if end is not None:
            self._suspects[key] = DEATHS
            self._store()
            raise RestortError(f"{source} is set aside: {end}; --retry tries it again")

    @contextlib.contextmanager
    def trying(self, source: Path) -> Iterator[None]:
        """Keep `source` on record within the context."""
        self.begin(source)
        try:
            yield
        finally:
            self.end(source, finished=False)

    def begin(self, source: Path) -> None:
        """Put `source` on record before it is read."""
        self._open.append(key_of(source))
        self._write()

    def end(self, source: Path, *, finished: bool = True) -> None:
        """Remove `source` from the record; `finished`: it was restored or failed, and is no suspect any more."""
        key = key_of(source)
        with contextlib.suppress(ValueError):
            self._open.remove(key)
        self._write()
        if finished and self._suspects.get(key, DEATHS) < DEATHS:
            del self._suspects[key]
            self._store()

    def set_aside(self, source: Path) -> None:
        """Let this run and later ones fail at `source` without trying it."""
        self._suspects[key_of(source)] = DEATHS
        self._store()

    def close(self) -> None:
        """Remove the record of this run."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _write(self) -> None:
        if self._usable:
            with contextlib.suppress(OSError):
                self._file.write_text(json.dumps(self._open), "utf-8")

    def _known(self) -> dict[str, int]:
        try:
            kept = json.loads(_text(self._folder / _SUSPECTS))
            return {str(key): deaths for key, deaths in kept.items() if type(deaths) is int}
        except (OSError, RestortError, ValueError, AttributeError, RecursionError):
            return {}

    def _store(self) -> None:
        path = self._folder / _SUSPECTS
        with contextlib.suppress(OSError, RestortError):
            if self._suspects:
                write_bytes(path, json.dumps(self._suspects).encode(), overwrite=True)
            else:
                path.unlink(missing_ok=True)

    def _bury(self) -> None:
        """Count the deaths of runs whose lock is free, and remove what they left."""
        for path in self._folder.glob("*.lock"):
            if path == Path(self._lock.lock_file):
                continue
            lock, record = FileLock(path, thread_local=False), path.with_suffix(".json")
            try:
                check_no_link(path)
                lock.acquire(timeout=0)
            except (Timeout, OSError, RestortError):
                continue
            try:
                sources = json.loads(_text(record))
                for key in sources if isinstance(sources, list) else ():
                    if isinstance(key, str):
                        self._suspects[key] = self._suspects.get(key, 0) + 1
            except (OSError, RestortError, ValueError, RecursionError):
                pass
            finally:
                with contextlib.suppress(OSError):
                    record.unlink(missing_ok=True)
                    lock.release()
                    path.unlink(missing_ok=True)


def key_of(source: Path) -> str:
    """Return path, size and time of a file as a key: a repaired or replaced file has another key."""
    try:
        status = source.stat()
    except OSError:
        return f"{os.path.abspath(source)} absent"
    return f"{os.path.abspath(source)} {status.st_size} {status.st_mtime_ns}"


def _text(path: Path) -> str:
    check_no_link(path)
    return path.read_text("utf-8")
