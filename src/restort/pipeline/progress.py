"""What a person sees of a run, on stderr: a bar on a terminal, a line per file elsewhere, or errors alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from restort.pipeline.job import FileResult
from restort.pipeline.text import printable, rate_text, time_text


class Lines:
    """A line per finished file; with `quiet` only for failed ones. A context manager, like `Bar`."""

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
        print(line, file=sys.stderr, flush=True)

    def begin(self, source: Path) -> None:
        pass

    def tile(self, done: int, total: int) -> None:
        pass

    def end(self, result: FileResult) -> None:
        self._finished += 1
        if result.status == "failed":
            self.say(failure(result))
        elif not self.quiet:
            self.say(f"[{self._finished}/{self.total}] {outcome(result)}")
        if not self.quiet:
            for note in result.notes:
                self.say(f"restort: note: {printable(result.source)}: {note}")


class Bar(Lines):
    """rich's progress bar over files and the tiles within, with rate and time left; gone when finished."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
        from rich.text import Text

        start = time.monotonic()

        def pace(task: Task) -> tuple[float, float]:
            """Files a second of those really worked on, and seconds left."""
            worked = task.completed - task.fields["skipped"]
            rate = worked / max(time.monotonic() - start, 1e-9)
            return rate, (total - task.completed) / rate if rate > 0 else float("inf")

        class Column(ProgressColumn):
            max_refresh = 0.25

            def __init__(self, show: Callable[[Task], str]) -> None:
                super().__init__()
                self.show = show

            def render(self, task: Task) -> Text:
                return Text(self.show(task))

        columns: list[Any] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            Column(lambda task: f"{int(task.completed)}/{total}"),
            Column(lambda task: rate_text(pace(task)[0])),
            TimeElapsedColumn(),
            Column(lambda task: f"left {time_text(pace(task)[1])}"),
        ]
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=total, skipped=0)
        self._skipped = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, source: Path) -> None:
        name = printable(source.name)
        self._progress.update(self._task, description=name if len(name) <= 32 else name[:29] + "...")

    def tile(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=self._finished + done / total)

    def end(self, result: FileResult) -> None:
        self._finished += 1
        self._skipped += result.status == "skipped"
        self._progress.update(self._task, completed=self._finished, skipped=self._skipped)
        if result.status == "failed":
            self.say(failure(result))
        for note in result.notes:
            self.say(f"restort: note: {printable(result.source)}: {note}")


def observer(total: int, *, quiet: bool) -> Lines:
    """The one that fits where stderr goes."""
    if quiet or not sys.stderr.isatty():
        return Lines(total, quiet=quiet)
    return Bar(total)


def failure(result: FileResult) -> str:
    """The error, led by the file it is about unless it names it."""
    message = result.message or "failed"
    named = str(result.source) in message
    return "restort: " + printable(message if named else f"{result.source}: {message}")


def outcome(result: FileResult) -> str:
    if result.status == "skipped":
        return printable(f"{result.target}: {result.message}")
    size = "" if result.result_size is None else f", {result.result_size[0]} x {result.result_size[1]}"
    return printable(f"{result.source} -> {result.target} ({result.seconds:.1f} s{size})")
