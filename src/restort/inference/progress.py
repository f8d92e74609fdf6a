"""The progress of a run on stderr: a bar on a terminal, a line per file elsewhere, or only errors."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from restort.inference.batch import FileResult
from restort.utils.text import printable, rate_text, time_text, to_stderr


class Lines:
    """Print a line per finished file; with `quiet`, only for failed ones. A context manager like `Bar`."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self._finished = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, line: str) -> None:
        to_stderr(line)

    def begin(self, source: Path) -> None:
        pass

    def tile(self, done: int, total: int) -> None:
        pass

    def end(self, result: FileResult) -> None:
        self._finished += 1
        if result.status == "failed":
            self.say(failure(result))
        elif not self.quiet and result.status == "done":  # those up to date are counted at the end
            self.say(f"[{self._finished}/{self.total}] {outcome(result)}")
        if not self.quiet:
            for note in result.notes:
                self.say(f"restort: note: {printable(result.source)}: {note}")


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
            bar_format="{desc} {bar} {postfix[0]}/{total} {postfix[1]} [{elapsed}, left {postfix[2]}]",
            postfix=[0, rate_text(0), time_text(float("inf"))],
        )
        self._start = time.monotonic()
        self._skipped = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError):
            self._bar.close()

    def say(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._bar.write(line, file=sys.stderr)

    def begin(self, source: Path) -> None:
        name = printable(source.name)
        with suppress(OSError, ValueError):  # a closed terminal must not end the work
            self._bar.set_description_str(name if len(name) <= 32 else name[:29] + "...")

    def tile(self, done: int, total: int) -> None:
        self._show(self._finished + done / total)

    def end(self, result: FileResult) -> None:
        self._finished += 1
        self._skipped += result.status == "skipped"
        self._show(self._finished)
        if result.status == "failed":
            self.say(failure(result))
        for note in result.notes:
            self.say(f"restort: note: {printable(result.source)}: {note}")

    def _show(self, completed: float) -> None:
        """Update the bar. Rate and time left count restored files only, not those that were up to date."""
        worked = completed - self._skipped
        rate = worked / max(time.monotonic() - self._start, 1e-9)
        left = (self.total - completed) / rate if rate > 0 else float("inf")
        self._bar.postfix[:] = [int(completed), rate_text(rate), time_text(left)]
        self._bar.n = completed
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
    size = "" if result.result_size is None else f", {result.result_size[0]} x {result.result_size[1]}"
    return printable(f"{result.source} -> {result.target} ({result.seconds:.1f} s{size})")
