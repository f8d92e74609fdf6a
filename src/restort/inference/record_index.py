"""Where the newest line about each target lies in a manifest: 150 bytes of memory a target instead of 4 KB.

Lines are found by their beginning, without parsing them. A line that turns out to be damaged when it is looked up makes
the index parse every line once, so that older sound lines count again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BEGIN = b'{"target":"'
_BLOCK = 4 << 20  # bytes that are read at a time


class RecordIndex:
    """Offsets of lines in one file, by the targets that they are about.

    target_of   returns the target of a whole line, parsed with all its types; None for a void line
    """

    def __init__(self, target_of: Callable[[bytes], str | None]) -> None:
        self._target_of = target_of
        self._places: dict[int, int] = {}  # by the hash of the target: offset of its newest line
        self.strict = False
        self.end = 0  # offset behind the last whole line
        self.lines = 0

    def __len__(self) -> int:
        return len(self._places)

    def read_on(self, file: BinaryIO) -> None:
        """Add the whole lines from `end` on."""
        file.seek(self.end)
        rest = b""
        while block := file.read(_BLOCK):
            data = rest + block
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].split(b"\n")[:-1]:
                self._add(line)
                self.end += len(line) + 1
            rest = data[whole:]

    def _add(self, line: bytes) -> None:
        self.lines += 1
        target = self._target_of(line) if self.strict else _quick_target(line)
        if target is not None:
            self._places[hash(target)] = self.end

    def find(self, target: str) -> int | None:
        """Return where the newest line about `target` begins."""
        return self._places.get(hash(target))

    def places(self) -> Iterator[int]:
        """Yield the offsets of all lines that count, in the order of the file."""
        yield from sorted(self._places.values())

    def parse_all(self, path: Path) -> None:
        """Begin again and parse every line."""
        self._places.clear()
        self.strict, self.end, self.lines = True, 0, 0
        with path.open("rb") as file:
            self.read_on(file)


def _quick_target(line: bytes) -> str | None:
    """The target of a line that looks whole, from its beginning."""
    if not line.rstrip().endswith(b"}"):
        return None
    if line.startswith(_BEGIN):
        stop = line.find(b'"', len(_BEGIN))
        text = line[len(_BEGIN) : stop]
        if stop > 0 and b"\\" not in text and text.isascii():
            return text.decode("ascii")
    try:
        fields: Any = json.loads(line)  # escapes, or another order of the fields
        target = fields["target"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return target if isinstance(target, str) else None
