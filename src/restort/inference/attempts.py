"""Which files a run has in hand, so that a file that kills its run is known to the next one.

Every run keeps OUTPUT/.restort/attempts/NAME.json with the sources that it reads or restores, and a lock beside it for
as long as it lives. A file whose lock is free was left by a run that died. Its sources are suspects: each is first read
in a process of its own (restort.imaging.trial) and set aside if that process dies; after DEATHS runs it is set aside
without a trial. A run may also have been killed from outside, so one death alone proves nothing.
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
    """The attempts of one run in an output folder, and the suspects that earlier runs left.

    retry   forget the suspects
    notify  receives a sentence about each file that is tried in a process of its own

    Where nothing can be written there, nothing is kept: the manifest reports a folder that cannot be used.
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
        """Raise RestortError for a file that is set aside; a suspect is tried first."""
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
        """Strike `source` from the record; `finished`: it was restored or failed, so it is no suspect any more."""
        key = key_of(source)
        with contextlib.suppress(ValueError):
            self._open.remove(key)
        self._write()
        if finished and self._suspects.get(key, DEATHS) < DEATHS:
            del self._suspects[key]
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
    """The path, size and time of a file: one that was repaired or replaced is not the one that killed a run."""
    try:
        status = source.stat()
    except OSError:
        return f"{os.path.abspath(source)} absent"
    return f"{os.path.abspath(source)} {status.st_size} {status.st_mtime_ns}"


def _text(path: Path) -> str:
    check_no_link(path)
    return path.read_text("utf-8")
