"""Engines and timing caches on disk: found by key, built once for all processes, never stale.

An engine lies in the cache folder under engines/, with its sidecar (restort.backends.tensorrt.sidecar), to which its
key is added. The key identifies an engine; the SHA-256 in the sidecar only finds damage, because builds are not
reproducible. Who builds holds a lock of the engine. The system drops the lock when the process dies, and the next
holder removes what was left half-written.

Timing caches lie under tactics/, one for each kind of GPU: a second engine of a network builds in a fraction of the
time of the first, because most of its kernels are measured already.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock

from restort.backends.tensorrt import sidecar
from restort.backends.tensorrt.engine_key import EngineKey, profile_of
from restort.backends.tensorrt.options import Built, Notify, Size
from restort.errors import RestortError, UsageError
from restort.utils.cache_dir import cache_root, distrusted, slug
from restort.utils.files import make_folder, write_bytes

Combine = Callable[[bytes, bytes], bytes]

LIMIT = "RESTORT_ENGINES_GIB"
LIMIT_GIB = 20.0
PROMPT_S = 0.05  # how long a lock may take before the user is told that another process holds it


@dataclass(frozen=True)
class Stored:
    """An engine in the cache: its file, its sidecar, and whether this call built it."""

    path: Path
    about: dict[str, Any]
    built: bool = False

    @property
    def key(self) -> dict[str, Any]:
        found: dict[str, Any] = self.about["key"]
        return found

    @property
    def bytes(self) -> int:
        return int(self.about["bytes"])

    @property
    def used(self) -> float:
        """Time of the last use, in seconds since 1970."""
        return sidecar.path_of(self.path).stat().st_mtime


class EngineCache:
    """The engines under `folder`, at most `limit` bytes; the least recently used are removed first.

    folder  default: engines/ in the cache folder
    limit   default: the environment variable RESTORT_ENGINES_GIB, or 20 GiB
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or cache_root() / "engines"
        self.limit = limit_bytes() if limit is None else limit

    def obtain(self, key: EngineKey, make: Callable[[], Built], notify: Notify) -> Stored:
        """Return the engine of `key` from the cache, or build it with `make()`, which is called at most once.

        `notify` receives why an engine is built, and a line if another process is building it. Raises RestortError
        where the cache cannot be written, and what `make` raises.
        """
        path = self.folder / key.name
        if (found := self._good(path, key)) is not None:
            return found
        with self._lock(key.name, lambda: notify(_waiting(key))):
            if (found := self._good(path, key)) is not None:  # another process was faster
                return found
            notify(
                f"building the engine of {key.model}, {key.precision}, {key.profile}: {self._why(path, key)}"
            )
            self._remove(path)
            built = make()
            about = built.report | {"key": key.to_json(), "label": key.model}
            with _writing(self.folder):
                sidecar.write(path, replace(built, report=about))
            stored = Stored(path, sidecar.read(path), True)
        self._shrink(path)
        return stored

    def covering(self, key: EngineKey, size: Size) -> list[Stored]:
        """Return the undamaged engines that can replace one of `key` and take `size`, the most specific first.

        Engines of exactly this size come first, then those with the smallest largest size. Damaged ones are rebuilt
        when they are requested by their own key.
        """
        found = []
        for stored in self.entries():
            trusted = distrusted(stored.path) is None
            if trusted and key.stands_for(stored.key, size) and sidecar.problem(stored.path) is None:
                profile = profile_of(stored.key)
                area = profile.max[0] * profile.max[1] * profile.max[2]
                found.append((not profile.is_fixed, area, profile.opt != size, stored.path.name, stored))
        return [stored for *_, stored in sorted(found, key=lambda item: item[:4])]

    def touch(self, stored: Stored) -> None:
        """Mark it as used now."""
        with contextlib.suppress(OSError):
            os.utime(sidecar.path_of(stored.path))

    def discard(self, stored: Stored, notify: Notify, why: str) -> None:
        """Remove an engine that does not run here, and say why."""
        notify(f"rebuilding the engine {stored.path.name}: {why}")
        with self._lock(stored.path.name, lambda: None):
            self._remove(stored.path)

    def entries(self) -> list[Stored]:
        """Return all finished engines with a readable sidecar, the most recently used first."""
        found = []
        for path in self.folder.glob("*.engine") if self.folder.is_dir() else ():
            with contextlib.suppress(RestortError, OSError, KeyError, ValueError, TypeError):
                stored = Stored(path, sidecar.read(path))
                profile_of(stored.key)
                found.append((stored.used, stored))
        return [stored for _, stored in sorted(found, key=lambda item: -item[0])]

    def clear(self, older_than_s: float = 0.0) -> tuple[int, int]:
        """Remove engines not used for so long, unless they are being built; return their number and bytes.

        With 0, damaged and unfinished ones are removed, too.
        """
        count = freed = 0
        now = time.time()
        for path in sorted(self.folder.glob("*.engine")) if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):
                used = max(p.stat().st_mtime for p in (path, sidecar.path_of(path)) if p.exists())
                if now - used < older_than_s:
                    continue
                size = _size(path)
                if self._remove_if_free(path):
                    count, freed = count + 1, freed + size
        if not older_than_s:
            for path in sorted(self.folder.glob(".*.engine*")) if self.folder.is_dir() else ():
                with contextlib.suppress(OSError):
                    owner = re.sub(r"^\.|(?<=\.engine).*$", "", path.name)
                    if self._remove_if_free(self.folder / owner):
                        path.unlink(missing_ok=True)
        return count, freed

    def _good(self, path: Path, key: EngineKey) -> Stored | None:
        """Return the engine at `path` if it is undamaged and of this key."""
        try:
            stored = Stored(path, sidecar.read(path))
            if (
                distrusted(path) is not None
                or stored.key != key.to_json()
                or sidecar.problem(path) is not None
            ):
                return None
        except (RestortError, KeyError, TypeError):
            return None
        self.touch(stored)
        return stored

    def _why(self, path: Path, key: EngineKey) -> str:
        """Say why an engine has to be built."""
        if (distrust := distrusted(path)) is not None:
            return f"the cached one is not used ({distrust})"
        if path.exists():
            try:
                about = sidecar.read(path)
            except RestortError as error:
                return f"the cached one is unusable ({error})"
            if (problem := sidecar.problem(path)) is not None:
                return f"the cached one is damaged ({problem})"
            other = key.differs(about.get("key") or {})
            return f"the cached one is different ({'; '.join(other) or 'for an unknown reason'})"
        relatives = [s for s in self.entries() if s.path.name.startswith(f"{key.family}-")]
        same = [s for s in relatives if s.key.get("profile") == key.to_json()["profile"]]
        nearest = min(same or relatives, key=lambda s: len(key.differs(s.key)), default=None)
        if nearest is None:
            return "none is cached yet"
        return f"the cached one does not fit ({'; '.join(key.differs(nearest.key))})"

    def _shrink(self, keep: Path) -> None:
        """Remove the least recently used engines, but not `keep`, until the rest is within the limit."""
        with self._lock("limit", lambda: None):
            total = 0
            for stored in self.entries():  # the most recently used first
                total += stored.bytes
                if total > self.limit and stored.path != keep and self._remove_if_free(stored.path):
                    total -= stored.bytes

    def _remove_if_free(self, path: Path) -> bool:
        lock = self._file_lock(path.name)
        try:
            with lock.acquire(timeout=0):
                self._remove(path)
        except filelock.Timeout:
            return False
        return True

    def _remove(self, path: Path) -> None:
        """Remove an engine and its temporary files, the sidecar first; its lock must be held."""
        with _writing(self.folder):
            sidecar.path_of(path).unlink(missing_ok=True)
            for left in (path, *self.folder.glob(f".{path.name}*")):
                left.unlink(missing_ok=True)

    def _file_lock(self, name: str) -> filelock.BaseFileLock:
        with _writing(self.folder):
            make_folder(self.folder / "locks", private=True)
        return filelock.FileLock(self.folder / "locks" / f"{name}.lock")

    @contextlib.contextmanager
    def _lock(self, name: str, busy: Callable[[], object]) -> Iterator[None]:
        """Hold the lock `name`; call `busy` if another process holds it."""
        lock = self._file_lock(name)
        with _writing(self.folder):
            try:
                lock.acquire(timeout=PROMPT_S)
            except filelock.Timeout:
                busy()
                lock.acquire(poll_interval=0.25)
        try:
            yield
        finally:
            lock.release()


def limit_bytes() -> int:
    """The limit of RESTORT_ENGINES_GIB, or the default. Raises UsageError where it is not a number."""
    text = os.environ.get(LIMIT, "").strip()
    try:
        gib = float(text) if text else LIMIT_GIB
        if not 0 <= gib < 1e9:
            raise ValueError
    except ValueError:
        raise UsageError(f"{LIMIT} must be a number of GiB, such as 20, not {text!r}") from None
    return int(gib * 2**30)


def _waiting(key: EngineKey) -> str:
    return f"waiting for another process that is building the engine of {key.model}, {key.precision}"


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path, sidecar.path_of(path)) if p.exists())


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RestortError(
            f"cannot write the engine cache {folder} ({error.strerror or error}); set RESTORT_CACHE to another folder"
        ) from None


@dataclass(frozen=True)
class TimingCache:
    """The builder's timing cache of one library version, GPU and driver; times are valid for no other.

    A cache that cannot be read or written costs time only: no method raises.
    """

    version: str
    gpu: str
    capability: str
    driver: str
    folder: Path = field(default_factory=lambda: cache_root() / "tactics")

    @property
    def path(self) -> Path:
        names = (self.version, self.gpu, self.capability, f"cuda{self.driver}")
        return self.folder / f"{'_'.join(slug(name) for name in names)}.timings"

    def read(self) -> bytes | None:
        """Read the measurements of earlier builds, for the builder; None without any."""
        try:
            return self.path.read_bytes() or None
        except OSError:
            return None

    def merge(self, measured: bytes, combine: Combine, seen: bytes | None = None) -> None:
        """Add what a build measured that began with `seen`, to what other builds have written since.

        `combine(a, b)` joins two caches. It may raise where one is damaged; the new one then replaces both.
        """
        with contextlib.suppress(OSError, RestortError):
            make_folder(self.folder, private=True)
            with filelock.FileLock(f"{self.path}.lock"):
                before = self.read()
                if before not in (None, measured, seen):
                    with contextlib.suppress(Exception):
                        measured = combine(before or b"", measured)
                write_bytes(self.path, measured, overwrite=True)
