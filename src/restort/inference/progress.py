"""The progress of a run on stderr: a bar on a terminal, lines elsewhere, or only errors."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from restort.inference.batch import FileResult
from restort.utils.text import printable, rate_text, time_text, to_stderr

FEW = 100
"""Runs of more files print a line a minute instead of a line a file."""
MINUTE = 60.0


class Pace:
    """Progress, rate and remaining time of a run. Files that were up to date do not count as work."""

    def __init__(self, total: int) -> None:
        self.total, self.finished, self.worked, self.megapixels = total, 0, 0, 0.0
        self._start = time.monotonic()

    def end(self, result: FileResult) -> None:
        """Count a finished file."""
        self.finished += 1
        self.worked += result.status != "skipped"
        if result.status == "done" and result.result_size is not None:
            self.megapixels += result.result_size[0] * result.result_size[1] / 1e6

    def rates(self, part: float = 0.0) -> tuple[float, float, float]:
        """Return (files a second, megapixels a second, seconds left), with `part` of the current file done."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.worked + part) / seconds
        left = (self.total - self.finished - part) / rate if rate > 0 else float("inf")
        return rate, self.megapixels / seconds, left

    def text(self) -> str:
        """Return rate and remaining time as text."""
        rate, megapixels, left = self.rates()
        return f"{rate_text(rate)}, {megapixels:.1f} MP/s, left {time_text(left)}"


class Lines:
    """Print a line per finished file, or a line a minute of many; with `quiet`, only failed files.

    A context manager like `Bar`.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self._pace = Pace(total)
        self._last_line = time.monotonic()

    @property
    def _finished(self) -> int:
        return self._pace.finished

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def notify(self, line: str) -> None:
        """Print a message."""
        to_stderr(line)

    def begin(self, source: Path) -> None:
        pass

    def tile(self, done: int, total: int) -> None:
        pass

    def end(self, result: FileResult) -> None:
        self._pace.end(result)
        if result.status == "failed":
            self.notify(failure(result))
        elif not self.quiet and self.total > FEW:
            if time.monotonic() - self._last_line >= MINUTE:
                self._last_line = time.monotonic()
                self.notify(f"[{self._finished}/{self.total}] {self._pace.text()}")
        elif not self.quiet and result.status == "done":  # those up to date are counted at the end
            self.notify(f"[{self._finished}/{self.total}] {outcome(result)}")
        if not self.quiet:
            for note in result.notes:
                self.notify(f"restort: note: {printable(result.source)}: {note}")


class Bar(Lines):
    """A tqdm bar over files and their tiles with rate and time left; it disappears at the end."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {bar} {postfix[0]}/{total} {postfix[1]} {postfix[2]} MP/s "
            "[{elapsed}, left {postfix[3]}]",
            postfix=[0, rate_text(0), "0.0", time_text(float("inf"))],
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError):
            self._bar.close()

    def notify(self, line: str) -> None:
        """Print a message above the bar."""
        with suppress(OSError, ValueError):
            self._bar.write(line, file=sys.stderr)

    def begin(self, source: Path) -> None:
        name = printable(source.name)
        with suppress(OSError, ValueError):  # a closed terminal must not end the work
            self._bar.set_description_str(name if len(name) <= 32 else name[:29] + "...")

    def tile(self, done: int, total: int) -> None:
        self._show(done / total)

    def end(self, result: FileResult) -> None:
        self._pace.end(result)
        self._show()
        if result.status == "failed":
            self.notify(failure(result))
        for note in result.notes:
            self.notify(f"restort: note: {printable(result.source)}: {note}")

    def _show(self, part: float = 0.0) -> None:
        """Update the bar, with `part` of the current file done."""
        rate, megapixels, left = self._pace.rates(part)
        self._bar.postfix[:] = [self._finished, rate_text(rate), f"{megapixels:.1f}", time_text(left)]
        self._bar.n = self._finished + part
        with suppress(OSError, ValueError):
            self._bar.refresh()


def observer(total: int, *, quiet: bool) -> Lines:
    """Make a Bar for a terminal, otherwise Lines."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        return Lines(total, quiet=quiet)
    try:
        return Bar(total)
    except (OSError, ValueError):  # the terminal has gone
        return Lines(total)


def failure(result: FileResult) -> str:
    """Return the error, with the name of the file in front unless the message has it."""
    message = result.message or "failed"
    named = str(result.source) in message
    return "restort: " + printable(message if named else f"{result.source}: {message}")


def outcome(result: FileResult) -> str:
    """Return a line on a finished file: source, target, seconds, size."""
    size = "" if result.result_size is None else f", {result.result_size[0]} x {result.result_size[1]}"
    return printable(f"{result.source} -> {result.target} ({result.seconds:.1f} s{size})")
