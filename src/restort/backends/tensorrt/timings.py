"""The builder's timing cache: how long each kernel took here, shared by all engines built on one kind of GPU.

A second engine of a network builds in a fraction of the time of the first, because it finds most of its kernels
measured. Builders run side by side and each adds what it measured to what is in the file by then.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from restort.utils.cache_dir import cache_root, slug

Combine = Callable[[bytes, bytes], bytes]


def folder_of_timings() -> Path:
    return cache_root() / "tactics"


@dataclass(frozen=True)
class Timings:
    """The timing cache of one library, GPU and driver; times hold for no other.

    A cache that cannot be read or written costs time and nothing else: no method raises for it.
    """

    version: str
    gpu: str
    capability: str
    driver: str
    folder: Path = field(default_factory=folder_of_timings)

    @property
    def path(self) -> Path:
        names = (self.version, self.gpu, self.capability, f"cuda{self.driver}")
        return self.folder / f"{'_'.join(slug(name) for name in names)}.timings"

    def read(self) -> bytes | None:
        """What has been measured so far, for the builder; None where there is nothing."""
        try:
            return self.path.read_bytes() or None
        except OSError:
            return None

    def merge(self, measured: bytes, combine: Combine, seen: bytes | None = None) -> None:
        """Adds what a build measured that had begun with `seen`.

        `combine(a, b)` joins two caches, where the file has changed since; it may raise where one is damaged, and
        then the newly measured one takes the place of both.
        """
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{self.path}.lock"):
                before = self.read()
                if before not in (None, measured, seen):
                    with contextlib.suppress(Exception):
                        measured = combine(before or b"", measured)
                try:
                    temporary.write_bytes(measured)
                    temporary.replace(self.path)
                finally:
                    temporary.unlink(missing_ok=True)
