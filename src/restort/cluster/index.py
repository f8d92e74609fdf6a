"""The newest line of the manifest for every target, in a temporary database: millions take no memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from restort.inference.manifest import Record

_AT_ONCE = 500  # SQLite takes a limited number of parameters


class Index:
    """Lines of manifests by target. The database is a file of SQLite's own, which goes with the process."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("")
        self._db.execute("CREATE TABLE record (target TEXT PRIMARY KEY, line BLOB NOT NULL) WITHOUT ROWID")

    def add(self, manifest: Path) -> None:
        """Read all lines of a manifest; later ones replace earlier ones. A missing file has none."""
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO record VALUES (?, ?)",
                ((record.target, line) for record, line in records(manifest)),
            )

    def lines(self, targets: Iterable[str]) -> tuple[bytes, ...]:
        """Return the lines of those targets that have one."""
        wanted, found = list(targets), []
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            found += self._db.execute(f"SELECT line FROM record WHERE target IN ({marks})", part).fetchall()
        return tuple(line for (line,) in found)

    def close(self) -> None:
        self._db.close()


def records(manifest: Path) -> Iterator[tuple[Record, bytes]]:
    """Yield the sound lines of a manifest, parsed and as they are. A missing file has none."""
    try:
        with manifest.open("rb") as file:
            for line in file:
                record = Record.parse(line)
                if record is not None:
                    yield record, line
    except FileNotFoundError:
        return
