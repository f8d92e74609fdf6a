"""The record of an output folder, by which a second run restores only what is missing or has changed.

OUTPUT/.restort/manifest.jsonl has one JSON object a line, and runs only append to it: one line before a picture is
written, one after. It survives kill -9 and several runs at once: every line is one write under a lock, reading skips a
torn last line, and a picture that has only its first line was begun by a run and is restored again. Old lines are
dropped when there are many.

Runs that share a folder share the work. A run claims a picture (a lock that the system frees when its owner dies)
before it restores it, and skips pictures that another run has claimed.

Workers of a cluster run (restort.cluster) each append to a file of their own, OUTPUT/.restort/workers/NAME.jsonl, and
hold its lock while they live. Whoever opens the folder next moves those lines into the manifest.

An output folder may come from an untrusted source: lines with wrong types are ignored, and links or special files at
the names used here raise an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from restort.errors import RestortError
from restort.inference.record_index import RecordIndex
from restort.utils.files import check_no_link, create_temporary, publish

FOLDER = ".restort"
WORKERS = "workers"
CLUSTER_LOCK = "cluster.lock"
CLAIMS = 64  # number of lock files; two pictures that share one only wait for each other
LEFTOVER = re.compile(r"\.restort-[0-9a-f]{16}\.part")
SETTLED_SECONDS = 60.0  # a temporary file unchanged for this long belongs to no running process
_LOCK_SECONDS = 30.0
_BLOCK = 64 << 10  # bytes of lines that are read at once

State = Literal["new", "unknown", "foreign", "changed", "done"]


@dataclass(frozen=True)
class Fingerprint:
    """The content of a file: size and time for a quick comparison, SHA-256 (hex) for certainty."""

    size: int
    mtime_ns: int
    sha256: str

    @staticmethod
    def parse(value: Any) -> Fingerprint:
        """Parse a JSON object. Raises ValueError where a type or a key is wrong."""
        if not isinstance(value, dict) or set(value) != {"size", "mtime_ns", "sha256"}:
            raise ValueError("no fingerprint")
        size, mtime_ns, sha256 = value["size"], value["mtime_ns"], value["sha256"]
        if type(size) is not int or type(mtime_ns) is not int or not isinstance(sha256, str):
            raise ValueError("wrong types in a fingerprint")
        return Fingerprint(size, mtime_ns, sha256)

    @staticmethod
    def of(path: Path) -> Fingerprint:
        """Read a file and return its fingerprint. Raises OSError where it cannot be read."""
        status = path.stat()  # before the content, so that a later comparison notices a change while reading
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return Fingerprint(status.st_size, status.st_mtime_ns, digest.hexdigest())

    def matches(self, path: Path) -> bool:
        """Return whether the file still has this content. It is read only if the size is equal, the time not."""
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            return status.st_mtime_ns == self.mtime_ns or Fingerprint.of(path).sha256 == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class Record:
    """One line of the manifest.

    target    relative to the output folder
    source    absolute path
    content   of the source
    recipe    restort.inference.model.Model.recipe
    made      content of the target; None in the line from before it was written
    details   sizes, backend and so on of the result
    """

    target: str
    source: str
    content: Fingerprint
    recipe: Mapping[str, Any]
    made: Fingerprint | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> bytes:
        """Return the line in the file."""
        return (json.dumps(asdict(self), separators=(",", ":"), default=str) + "\n").encode("ascii")

    @staticmethod
    def parse(line: bytes) -> Record | None:
        """Parse a line; return None where it is torn, damaged, of another version, or has a value of a wrong type."""
        try:
            fields = json.loads(line)
            fields["content"] = Fingerprint.parse(fields["content"])
            fields["made"] = None if fields["made"] is None else Fingerprint.parse(fields["made"])
            record = Record(**fields)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        texts = isinstance(record.target, str) and isinstance(record.source, str)
        return (
            record if texts and isinstance(record.recipe, dict) and isinstance(record.details, dict) else None
        )


class Manifest:
    """The manifest of one output folder, which is created if it is missing.

    records   the file of its lines; None for that of the folder

    Raises RestortError where the folder or its manifest cannot be written.
    """

    def __init__(self, root: Path, records: Path | None = None) -> None:
        self.root = root
        self._folder = root / FOLDER
        self._path = records or self._folder / "manifest.jsonl"
        self._index = RecordIndex(_target_of)
        self._inode = -1
        self._block = 0, b""  # a part of the file, and where it begins
        self._last: tuple[str, int, Record] | None = None  # (key, place, record) of the last lookup
        self._claims: dict[int, FileLock] = {}
        claims, lock = self._folder / "claims", self._path.with_suffix(".lock")
        try:
            for folder in (self._folder, claims):
                check_no_link(folder, folder=True)
            claims.mkdir(parents=True, exist_ok=True)
            check_no_link(lock)
            check_no_link(self._path)
            self._lock = FileLock(lock, timeout=_LOCK_SECONDS, thread_local=False)
            self._mutex = threading.RLock()  # threads of one run write their results at the same time
            if records is None:
                _check_no_cluster(root)
                absorb(root)
            self.refresh()
            if self._index.lines > 2 * len(self._index) + 1000:
                self._compact()
            self._path.open("ab").close()
        except (OSError, Timeout) as error:
            raise _unwritable(root, error) from None

    def refresh(self) -> None:
        """Read the lines that other runs have added since."""
        with self._mutex:
            self._refresh()

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            if status.st_ino == self._inode and status.st_size == self._index.end:
                return
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:  # the first time, or another run has dropped old lines
                    self._index, self._inode = RecordIndex(_target_of), inode
                    self._last, self._block = None, (0, b"")
                self._index.read_on(file)
        except FileNotFoundError:
            return

    def _record(self, target: Path) -> Record | None:
        """Return the newest sound record of a target."""
        with self._mutex:
            key = self._key(target)
            record = self._looked_up(key)
            if record is None and self._index.find(key) is not None and not self._index.strict:
                self._index.parse_all(self._path)  # a damaged line hides an older one
                record = self._looked_up(key)
            return record

    def _looked_up(self, key: str) -> Record | None:
        if self._last is not None and self._last[:2] == (key, self._index.find(key)):
            return self._last[2]
        for _ in range(3):  # another run may drop old lines meanwhile
            place = self._index.find(key)
            if place is None:
                return None
            line = self._line(place)
            if line is not None:
                record = Record.parse(line)
                if record is None or record.target != key:
                    return None
                self._last = key, place, record
                return record
            self._refresh()
        return None

    def _line(self, place: int) -> bytes | None:
        """Read the line at `place`, and keep those behind it, which are asked for next; None in another file."""
        start, block = self._block
        if start <= place and (end := block.find(b"\n", place - start)) >= 0:
            return block[place - start : end]
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_ino == self._inode:
                file.seek(place)
                self._block = place, file.read(_BLOCK)
                end = self._block[1].find(b"\n")
                return self._block[1][:end] if end >= 0 else self._block[1] + file.readline()
        return None

    def state(self, source: Path, target: Path, recipe: Mapping[str, Any]) -> State:
        """Return the state of `target`.

        'done'     it was made from this content by this recipe and has not changed since
        'changed'  it was made, or begun, from this source and must be made again
        'new'      it does not exist
        'unknown'  it exists and no run made it
        'foreign'  it was made from other content of another source
        """
        record = self._record(target)
        exists = os.path.lexists(target)
        if record is None:
            return "unknown" if exists else "new"
        same_content = record.content.matches(source)
        if record.made is not None and same_content and dict(record.recipe) == dict(recipe):
            return "done" if record.made.matches(target) else "changed" if exists else "new"
        if not exists:
            return "new"
        if record.source != _absolute(source) and not same_content and record.made is not None:
            return "foreign"
        return "changed"

    def maker(self, target: Path) -> str:
        """Return the path of the source that `target` was made from."""
        record = self._record(target)
        return "an unknown source" if record is None else record.source

    def details(self, target: Path) -> Mapping[str, Any]:
        """Return the details of the last record of `target`."""
        record = self._record(target)
        return record.details if record is not None else {}

    def known(self, source: Path, target: Path) -> Mapping[str, Any]:
        """Return the details of `target` if it was made from the present content of `source`; else {}."""
        record = self._record(target)
        return record.details if record is not None and record.content.matches(source) else {}

    def begin(self, source: Path, target: Path, content: Fingerprint, recipe: Mapping[str, Any]) -> Record:
        """Append the line that precedes writing the target."""
        record = Record(self._key(target), _absolute(source), content, dict(recipe))
        self._append(record)
        return record

    def finish(self, record: Record, target: Path, details: Mapping[str, Any]) -> None:
        """Append the line that follows writing the target."""
        try:
            made = Fingerprint.of(target)
        except OSError as error:
            raise RestortError(f"cannot read {target} after writing it: {error.strerror or error}") from None
        self._append(replace(record, made=made, details=dict(details)))

    @contextmanager
    def claim(self, target: Path, *, wait: bool = False) -> Iterator[bool]:
        """Claim the target against other runs. Yields False where another run has it and `wait` is not set."""
        number = zlib.crc32(os.fsencode(self._key(target))) % CLAIMS
        lock = self._claims.get(number)
        try:
            if lock is None:
                path = self._folder / "claims" / f"{number:02d}.lock"
                check_no_link(path)
                lock = FileLock(path, thread_local=False)
                self._claims[number] = lock
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise _unwritable(self.root, error) from None
        try:
            yield True
        finally:
            lock.release()

    def _append(self, record: Record) -> None:
        try:
            with self._mutex, self._lock:
                data = (b"\n" if self._ends_torn() else b"") + record.line()
                with self._path.open("ab", buffering=0) as file:
                    if file.write(data) != len(data):  # the disk is full; the torn line is void
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._refresh()
        except (OSError, Timeout) as error:
            raise _unwritable(self.root, error) from None

    def _ends_torn(self) -> bool:
        """Return whether the last line has no end, after a full disk or a power failure."""
        try:
            with self._path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:  # no file, or an empty one
            return False

    def _compact(self) -> None:
        """Drop all lines but the newest sound one about each target."""
        with self._lock:
            self._index.parse_all(self._path)
            temporary = create_temporary(self._path)
            try:
                with self._path.open("rb") as old, temporary.open("wb") as new:
                    for place in self._index.places():
                        old.seek(place)
                        new.write(old.readline())
                publish(temporary, self._path, overwrite=True)
            finally:
                temporary.unlink(missing_ok=True)
            self._refresh()

    def _key(self, target: Path) -> str:
        return key_of(self.root, target)


def key_of(root: Path, target: Path) -> str:
    """Return the name of a target in the manifest of the output folder `root`."""
    text, prefix = os.fspath(target), f"{root}{os.sep}"
    if text.startswith(prefix) and ".." not in text and os.sep == "/":
        return text[len(prefix) :]  # relpath takes 10 us
    return Path(os.path.relpath(target, root)).as_posix()


def _check_no_cluster(root: Path) -> None:
    """Raise RestortError while a cluster run works in the folder: its workers share pictures without claims."""
    path = root / FOLDER / CLUSTER_LOCK
    if not path.exists():
        return
    check_no_link(path)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RestortError(
            f"a cluster run works in {root}; wait for its end, or choose another folder"
        ) from None
    lock.release()


def absorb(root: Path) -> None:
    """Move the lines of ended workers into the manifest. Raises OSError or Timeout where it cannot be written.

    A crash in between leaves a file whose lines the manifest has: moving them again changes nothing.
    """
    folder = root / FOLDER
    for path in sorted((folder / WORKERS).glob("*.jsonl")):
        check_no_link(path)
        check_no_link(path.with_suffix(".lock"))
        alive = FileLock(path.with_suffix(".lock"), thread_local=False)
        try:
            alive.acquire(timeout=0)
        except Timeout:  # its worker lives
            continue
        try:
            with FileLock(folder / "manifest.lock", timeout=_LOCK_SECONDS), path.open("rb") as lines:
                manifest = folder / "manifest.jsonl"
                check_no_link(manifest)
                with manifest.open("ab") as file:
                    file.write(b"\n")  # ends a line that a full disk has torn; an empty line is void
                    shutil.copyfileobj(lines, file)
                    file.write(b"\n")
            path.unlink()
        except FileNotFoundError:  # another run has moved it
            pass
        finally:
            alive.release()
            _remove(path.with_suffix(".lock"))


def _target_of(line: bytes) -> str | None:
    record = Record.parse(line)
    return None if record is None else record.target


class Leftovers:
    """Temporary files that killed runs left in `folders`.

    Files unchanged for SETTLED_SECONDS are removed at once. Younger ones may belong to another run; `clean` removes
    those that have not changed until the end.
    """

    def __init__(self, folders: set[Path]) -> None:
        self._seen: dict[Path, tuple[int, int]] = {}
        self._since = time.monotonic()
        for folder in folders:
            for path, mark in _temporaries(folder):
                if time.time() - mark[1] / 1e9 > SETTLED_SECONDS:
                    _remove(path)
                else:
                    self._seen[path] = mark

    def clean(self) -> None:
        """Remove files that have not changed since the start; wait until the start is two seconds ago."""
        if not self._seen:
            return
        time.sleep(max(0.0, self._since + 2 - time.monotonic()))
        for folder in {path.parent for path in self._seen}:
            for path, mark in _temporaries(folder):
                if self._seen.get(path) == mark:
                    _remove(path)


def _temporaries(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """List the temporary files in a folder, each with (size, time of the last change)."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if LEFTOVER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((Path(entry.path), (status.st_size, status.st_mtime_ns)))
    except OSError:  # the folder is missing or cannot be read
        pass
    return found


def _remove(path: Path) -> None:
    with suppress(OSError):  # a file that stays harms nothing
        path.unlink(missing_ok=True)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _unwritable(root: Path, error: Exception) -> RestortError:
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return RestortError(f"cannot use the output folder {root}: {why.lower()}; choose one that can be written")
