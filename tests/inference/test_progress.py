"""Lines and rates of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from restort.inference import progress
from restort.inference.batch import FileResult, Status
from restort.inference.progress import FEW, Lines, Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list of one that a test may change."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def result(status: Status = "done", size: tuple[int, int] = (1000, 2000)) -> FileResult:
    return FileResult(Path("a.png"), Path("b.png"), status, result_size=size, message="up to date")


def test_rates_count_work_alone(clock: list[float]) -> None:
    pace = Pace(10)
    for status in ("skipped", "skipped", "done", "failed"):
        pace.end(result(status))
    clock[0] += 4
    assert pace.rates() == (0.5, 0.5, 12.0)
    assert pace.rates(0.5) == (0.625, 0.5, 8.8)
    assert pace.text() == "2.0 s/file, 0.5 MP/s, left 0:12"


def test_few_files_have_a_line_each(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines(2)
    lines.end(result())
    lines.end(result("skipped"))
    assert capfd.readouterr().err == "[1/2] a.png -> b.png (0.0 s, 1000 x 2000)\n"


def test_many_files_have_a_line_a_minute(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines(FEW + 100)
    for _ in range(150):
        clock[0] += 1
        lines.end(result())
    told = capfd.readouterr().err.splitlines()
    assert told == [
        "[60/200] 1.0 files/s, 2.0 MP/s, left 2:20",
        "[120/200] 1.0 files/s, 2.0 MP/s, left 1:20",
    ]
    lines.end(result("failed"))
    assert "a.png" in capfd.readouterr().err, "failures are told at once"
