"""Text for terminals: escapes, rates, times."""

from __future__ import annotations

import sys
from contextlib import suppress


def printable(text: object) -> str:
    """Escape control characters and invalid encodings, so that any terminal can show the text."""
    safe = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in safe)


def to_stderr(line: str) -> None:
    """Print a line on stderr. Where that fails, as on a closed terminal or a full disk, the work goes on."""
    if sys.stderr is not None:  # a program without a console has none
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def rate_text(files_per_second: float) -> str:
    """`2.5 files/s`, or `4.0 s/file` below one file a second."""
    if files_per_second <= 0:
        return "-- s/file"
    if files_per_second >= 1:
        return f"{files_per_second:.1f} files/s"
    return f"{1 / files_per_second:.1f} s/file"


def time_text(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`; `-:--` for infinity."""
    if seconds == float("inf"):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
