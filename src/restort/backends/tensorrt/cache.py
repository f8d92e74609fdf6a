"""Engines on disk: found by key, built once however many processes want them, never stale.

An engine lies in the cache folder under engines/ with its sidecar (restort.backends.tensorrt.sidecar), to which
its key is added. Plans are never hashed for identity, since builds are not reproducible; the sidecar's SHA-256
of the plan only finds damage. Whoever builds holds a lock of the engine's own; the system drops it when a process
dies, whatever killed it, and what the dead left half-written is removed by the next to hold the lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import filelock

from restort.backends.tensorrt import sidecar
from restort.backends.tensorrt.build import Built
from restort.backends.tensorrt.keys import Key, Size, profile_of
from restort.errors import RestortError, UsageError
from restort.utils.cache_dir import cache_root

LIMIT = "RESTORT_ENGINES_GIB"
LIMIT_GIB = 20.0
PROMPT_S = 0.05  # how long a lock may take before it is said that another process holds it


Say: TypeAlias = Callable[[str], object]


@dataclass(frozen=True)
class Stored:
    """An engine in the cache; `built` if this call built it."""

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
        """When it was used last, seconds since 1970."""
        return sidecar.path_of(self.path).stat().st_mtime


class EngineCache:
    """The engines under `folder`; those not used for longest go when they take more than `limit` bytes.

    folder  default: engines/ in the cache folder.
    limit   default: 20 GiB, or what the environment variable RESTORT_ENGINES_GIB says.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or cache_root() / "engines"
        self.limit = limit_bytes() if limit is None else limit

    def obtain(self, key: Key, make: Callable[[], Built], say: Say) -> Stored:
        """The engine of `key`, from the cache or made by `make()`, which is called at most once.

        `say` gets one line that says why an engine is built, and one if another process is building it now.
        Raises RestortError where the cache cannot be written, and whatever `make` raises.
        """
        path = self.folder / key.name
        if (found := self._good(path, key)) is not None:
            return found
        with self._lock(key.name, lambda: say(_waiting(key))):
            if (found := self._good(path, key)) is not None:  # another process was faster
                return found
            say(f"building the engine of {key.model}, {key.precision}, {key.profile}: {self._why(path, key)}")
            self._remove(path)
            built = make()
            about = built.report | {"key": key.to_json(), "label": key.model}
            with _writing(self.folder):
                sidecar.write(path, replace(built, report=about))
            stored = Stored(path, sidecar.read(path), True)
        self._shrink(path)
        return stored

    def covering(self, key: Key, size: Size) -> list[Stored]:
        """Whole engines that do what one of `key` would do and take `size`, the most special first.

        That is first those of exactly this size, then those with the smallest largest size. Damaged ones are left
        out; they are rebuilt when they are asked for by their own key.
        """
        found = []
        for stored in self.entries():
            if key.stands_for(stored.key, size) and sidecar.problem(stored.path) is None:
                profile = profile_of(stored.key)
                area = profile.max[0] * profile.max[1] * profile.max[2]
                found.append((not profile.is_fixed, area, profile.opt != size, stored.path.name, stored))
        return [stored for *_, stored in sorted(found, key=lambda item: item[:4])]

    def touch(self, stored: Stored) -> None:
        """Marks it as used now."""
        with contextlib.suppress(OSError):
            os.utime(sidecar.path_of(stored.path))

    def discard(self, stored: Stored, say: Say, why: str) -> None:
        """Removes an engine that turned out not to run here, and says so."""
        say(f"the engine {stored.path.name} is built again: {why}")
        with self._lock(stored.path.name, lambda: None):
            self._remove(stored.path)

    def entries(self) -> list[Stored]:
        """All finished engines with a readable sidecar, the ones used last first."""
        found = []
        for path in self.folder.glob("*.engine") if self.folder.is_dir() else ():
            with contextlib.suppress(RestortError, OSError, KeyError, ValueError, TypeError):
                stored = Stored(path, sidecar.read(path))
                profile_of(stored.key)
                found.append((stored.used, stored))
        return [stored for _, stored in sorted(found, key=lambda item: -item[0])]

    def clear(self, older_than_s: float = 0.0) -> tuple[int, int]:
        """Removes engines not used for so long, unless they are being built; how many, and how many bytes.

        With 0 also what is damaged or unfinished.
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

    def _good(self, path: Path, key: Key) -> Stored | None:
        """The engine at `path`, if it is whole and of this key."""
        try:
            stored = Stored(path, sidecar.read(path))
            if stored.key != key.to_json() or sidecar.problem(path) is not None:
                return None
        except (RestortError, KeyError, TypeError):
            return None
        self.touch(stored)
        return stored

    def _why(self, path: Path, key: Key) -> str:
        """Why an engine has to be built, in words."""
        if path.exists():
            try:
                about = sidecar.read(path)
            except RestortError as error:
                return f"the one in the cache cannot be used ({error})"
            if (problem := sidecar.problem(path)) is not None:
                return f"the one in the cache is damaged ({problem})"
            other = key.differs(about.get("key") or {})
            return f"the one in the cache is of something else ({'; '.join(other) or 'no reason is known'})"
        relatives = [s for s in self.entries() if s.path.name.startswith(f"{key.family}-")]
        same = [s for s in relatives if s.key.get("profile") == key.to_json()["profile"]]
        nearest = min(same or relatives, key=lambda s: len(key.differs(s.key)), default=None)
        if nearest is None:
            return "there is none yet"
        return f"the one in the cache does not fit ({'; '.join(key.differs(nearest.key))})"

    def _shrink(self, keep: Path) -> None:
        """Removes the engines used longest ago, but not `keep`, until the rest is within the limit."""
        with self._lock("limit", lambda: None):
            total = 0
            for stored in self.entries():  # the last used first
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
        """The engine and everything half-written of it; its lock must be held. The sidecar goes first."""
        with _writing(self.folder):
            sidecar.path_of(path).unlink(missing_ok=True)
            for left in (path, *self.folder.glob(f".{path.name}*")):
                left.unlink(missing_ok=True)

    def _file_lock(self, name: str) -> filelock.BaseFileLock:
        with _writing(self.folder):
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.folder / "locks" / f"{name}.lock")

    @contextlib.contextmanager
    def _lock(self, name: str, busy: Callable[[], object]) -> Iterator[None]:
        """Holds the lock `name`; calls `busy` if it has to be waited for."""
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
    """The limit that the environment sets, or the default. Raises UsageError where it is no number."""
    text = os.environ.get(LIMIT, "").strip()
    try:
        gib = float(text) if text else LIMIT_GIB
        if not 0 <= gib < 1e9:
            raise ValueError
    except ValueError:
        raise UsageError(f"{LIMIT} is {text!r}, which is no number of GiB; set it to 20, say") from None
    return int(gib * 2**30)


def _waiting(key: Key) -> str:
    return f"another process is building the engine of {key.model}, {key.precision}; waiting for it"


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
