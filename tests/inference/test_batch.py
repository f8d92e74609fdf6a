"""Folders: one bad file never stops the rest, and a second run makes only what is missing or has changed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.cli.main import main
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.folder import collect
from restort.imaging.picture import Picture
from restort.inference.attempts import Attempts
from restort.inference.batch import Options, restore_files
from restort.inference.progress import Lines
from restort.utils import interrupt
from tests.fakes.command_line import FAKE
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights

pytestmark = pytest.mark.usefixtures("fake_backend")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "x2.safetensors", ELAN[2])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """in/a.png, in/b.jpg and in/deep/c.png, of different sizes and contents."""
    folder = tmp_path / "in"
    for i, name in enumerate(("a.png", "b.jpg", "deep/c.png")):
        picture(folder / name, 20 + i, 30 + i, seed=i)
    return folder


def picture(path: Path, height: int = 20, width: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    write(path, Picture(values), overwrite=True)
    return path


class Result:
    def __init__(self, status: int, captured: Any) -> None:
        self.status, self.out, self.err = status, captured.out, captured.err
        self.report = json.loads(captured.out) if captured.out else {}
        self.files = {Path(item["source"]).name: item for item in self.report.get("files", [])}
        self.states = {name: item["status"] for name, item in self.files.items()}


@pytest.fixture
def upscale(capfd: pytest.CaptureFixture[str], weights: Path) -> Any:
    def call(*arguments: object) -> Result:
        given = [str(argument) for argument in arguments]
        chosen = [] if "--weights" in given else ["--weights", str(weights)]
        status = main(["upscale", *given, *chosen, "--json"])
        return Result(status, capfd.readouterr())

    return call


def times(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and ".restort" not in path.parts
    }


def test_folder_keeps_its_tree_and_reports_every_file(upscale: Any, photos: Path, tmp_path: Path) -> None:
    result = upscale(photos, "-o", tmp_path / "out")
    assert result.status == 0
    assert result.report["totals"] | {"seconds": 0, "megapixels": 0} == {
        "files": 3,
        "done": 3,
        "skipped": 0,
        "failed": 0,
        "seconds": 0,
        "megapixels": 0,
        "interrupted": False,
    }
    assert set(times(tmp_path / "out")) == {"a.png", "b.jpg", "deep/c.png"}
    item = result.files["c.png"]
    assert (item["size"], item["result_size"]) == ([32, 22], [64, 44])
    assert (item["backend"], item["precision"], item["tile"], item["error"]) == (
        "fake",
        "fp32",
        "whole",
        None,
    )
    made = read(tmp_path / "out" / "a.png").pixels
    assert np.array_equal(made, read(photos / "a.png").pixels.repeat(2, axis=0).repeat(2, axis=1))


def test_second_run_does_nothing(upscale: Any, photos: Path, tmp_path: Path) -> None:
    upscale(photos, "-o", tmp_path / "out")
    before = times(tmp_path / "out")
    result = upscale(photos, "-o", tmp_path / "out")
    assert result.status == 0
    assert set(result.states.values()) == {"skipped"}
    assert times(tmp_path / "out") == before
    item = result.files["a.png"]
    assert (item["result_size"], item["backend"], item["tile"]) == ([60, 40], "fake", "whole")


@pytest.mark.parametrize("change", ["content", "vanished", "altered", "new"])
def test_second_run_makes_what_changed(upscale: Any, photos: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    upscale(photos, "-o", out)
    if change == "content":
        picture(photos / "a.png", seed=9)
    elif change == "vanished":
        (out / "a.png").unlink()
    elif change == "altered":
        (out / "a.png").write_bytes(b"half a pictu")
    else:
        (photos / "a.png").rename(photos / "d.png")
        (out / "a.png").unlink()
    result = upscale(photos, "-o", out)
    name = "d.png" if change == "new" else "a.png"
    assert result.status == 0
    assert result.states == {name: "done", "b.jpg": "skipped", "c.png": "skipped"}
    expected = read(photos / name).pixels.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(read(out / name).pixels, expected)


def test_touching_a_file_changes_nothing(upscale: Any, photos: Path, tmp_path: Path) -> None:
    upscale(photos, "-o", tmp_path / "out")
    os.utime(photos / "a.png", (1, 1))
    os.utime(tmp_path / "out" / "b.jpg", (1, 1))
    assert set(upscale(photos, "-o", tmp_path / "out").states.values()) == {"skipped"}


def test_other_options_or_weights_make_all_again(upscale: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    upscale(photos, "-o", out)
    for more in (
        ["--tile", "64"],
        ["--tile", "64", "--overlap", "16"],
        ["--precision", "bf16"],
        ["--quality", "80"],
        ["--weights", write_weights(tmp_path / "other.safetensors", ELAN[2], seed=1)],
    ):
        assert set(upscale(photos, "-o", out, *more).states.values()) == {"done"}, more
        assert set(upscale(photos, "-o", out, *more).states.values()) == {"skipped"}, more
    more = ["--tile", "64", "--threads", "1", "--quiet", "--max-pixels", "1e6"]
    upscale(photos, "-o", out, "--tile", "64")
    assert set(upscale(photos, "-o", out, *more).states.values()) == {"skipped"}


def test_what_auto_takes_is_no_option(
    upscale: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes.fake_backend import FakeRunner

    upscale(photos, "-o", tmp_path / "out")
    monkeypatch.setattr(FakeRunner, "name", "another")
    assert set(upscale(photos, "-o", tmp_path / "out").states.values()) == {"skipped"}
    result = upscale(photos, "-o", tmp_path / "out", "--backend", "onnxruntime")
    assert set(result.states.values()) == {"done"}


def test_a_release_of_other_pixels_makes_all_again(
    upscale: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscale(photos, "-o", tmp_path / "out")
    monkeypatch.setattr("restort.inference.model.PIXELS_VERSION", 10**6)
    assert set(upscale(photos, "-o", tmp_path / "out").states.values()) == {"done"}


def test_a_bad_file_stops_nothing(upscale: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "a1.png").write_bytes(b"")
    (photos / "b1.png").write_text("no picture at all, but long enough to be one")
    (photos / "c1.jpg").write_bytes((photos / "b.jpg").read_bytes()[:400])
    result = upscale(photos, "-o", tmp_path / "out")
    assert result.status == 1
    bad = {name: item["error"] for name, item in result.files.items() if item["status"] == "failed"}
    assert set(bad) == {"a1.png", "b1.png", "c1.jpg"}
    assert "empty" in bad["a1.png"] and "damaged" in bad["c1.jpg"]
    assert result.report["totals"]["done"] == 3
    assert "Traceback" not in result.err and result.err.count("\nrestort: cannot read") == 3
    assert set(times(tmp_path / "out")) == {"a.png", "b.jpg", "deep/c.png"}


def test_a_failing_network_stops_nothing(
    upscale: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes.fake_backend import FakeRunner

    def call(self: FakeRunner, x: np.ndarray) -> np.ndarray:
        raise ValueError("some library's\nwords")

    monkeypatch.setattr(FakeRunner, "__call__", call)
    result = upscale(photos, "-o", tmp_path / "out")
    assert result.status == 1
    assert result.report["totals"]["failed"] == 3
    assert "some library's words" in result.files["a.png"]["error"]
    assert "Traceback" not in result.err


def test_files_of_others_are_left_alone(upscale: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("precious")
    result = upscale(photos, "-o", out)
    assert result.status == 1
    assert result.states == {"a.png": "failed", "b.jpg": "done", "c.png": "done"}
    assert "--overwrite" in result.files["a.png"]["error"]
    assert (out / "a.png").read_text() == "precious"
    result = upscale(photos, "-o", out, "--overwrite")
    assert result.status == 0
    assert set(result.states.values()) == {"done"}
    assert read(out / "a.png").pixels.shape == (40, 60, 3)


def test_another_source_of_the_same_name_is_not_lost(upscale: Any, tmp_path: Path) -> None:
    first = picture(tmp_path / "one" / "a.png", seed=1)
    second = picture(tmp_path / "two" / "a.png", seed=2)
    assert upscale(first, "-o", tmp_path / "out").status == 0
    before = times(tmp_path / "out")
    result = upscale(second, "-o", tmp_path / "out")
    assert result.status == 1
    assert str(first) in result.files["a.png"]["error"]
    assert times(tmp_path / "out") == before
    second.write_bytes(first.read_bytes())
    assert upscale(second, "-o", tmp_path / "out").states == {"a.png": "skipped"}


def test_single_file_output(upscale: Any, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "big.jpg"
    assert upscale(photos / "a.png", "-o", target).status == 0
    assert [path.name for path in target.parent.iterdir()] == ["big.jpg"]
    before = times(target.parent)
    result = upscale(photos / "a.png", "-o", target)
    assert result.status == 1 and "--overwrite" in result.files["a.png"]["error"]
    assert times(target.parent) == before
    assert upscale(photos / "a.png", "-o", target, "--overwrite").status == 0


def test_kill_and_resume(weights: Path, tmp_path: Path, upscale: Any) -> None:
    """kill -9 in the middle, with a picture half-made: the next run makes the rest and tidies up."""
    photos, out = tmp_path / "many", tmp_path / "out"
    for i in range(8):
        picture(photos / f"{i}.png", seed=i)
    command = [*FAKE, "upscale", str(photos), "-o", str(out), "--weights", str(weights), "--quiet"]
    process = subprocess.Popen(command, env=os.environ | {"FAKE_SECONDS": "0.2"})
    try:
        wait_for(lambda: len(list(out.glob("*.png"))) >= 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = out / ".restort-0123456789abcdef.part"
    left.write_bytes(b"what a killed run was writing")
    finished = {name: mark for name, mark in times(out).items() if name.endswith(".png")}
    assert 3 <= len(finished) < 8
    for name in finished:
        assert read(out / name).pixels.shape == (40, 60, 3)
    result = upscale(photos, "-o", out)
    assert result.status == 0
    after = times(out)
    assert sorted(after) == [f"{i}.png" for i in range(8)]
    skipped = {name for name, state in result.states.items() if state == "skipped"}
    # The last one may have got its name without its line: it is made again.
    assert len(finished) - 1 <= len(skipped) <= len(finished)
    assert {name: after[name] for name in skipped} == {name: finished[name] for name in skipped}
    assert not left.exists()


def test_two_runs_share_a_folder(weights: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "many", tmp_path / "out"
    for i in range(8):
        picture(photos / f"{i}.png", seed=i)
    command = [*FAKE, "upscale", str(photos), "-o", str(out), "--weights", str(weights), "--json"]
    environment = os.environ | {"FAKE_SECONDS": "0.15"}
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    reports = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(report["totals"]["done"] for report in reports) == 8
    assert sum(report["totals"]["skipped"] for report in reports) == 8
    assert min(report["totals"]["done"] for report in reports) >= 1
    lines = [json.loads(line) for line in (out / ".restort" / "manifest.jsonl").read_bytes().splitlines()]
    assert sorted(line["target"] for line in lines if line["made"]) == [f"{i}.png" for i in range(8)]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interruption_is_clean(weights: Path, tmp_path: Path, number: int, status: int) -> None:
    photos, out = tmp_path / "many", tmp_path / "out"
    for i in range(40):  # more than a busy machine gets done before the signal arrives
        picture(photos / f"{i}.png", seed=i)
    command = [*FAKE, "upscale", str(photos), "-o", str(out), "--weights", str(weights), "--json"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"FAKE_SECONDS": "0.3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # background jobs and nohup ignore some
    )
    # two, since the signal may come after a picture has its name and before it is counted
    wait_for(lambda: len(list(out.glob("*.png"))) >= 2)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == status
    report = json.loads(printed)
    assert report["totals"]["interrupted"] and 1 <= report["totals"]["done"] < 40
    assert "Traceback" not in errors and "interrupted" in errors
    assert not list(out.rglob("*.part"))
    for path in out.glob("*.png"):
        assert read(path).pixels.shape == (40, 60, 3)


def test_a_swallowed_interruption_is_noticed(weights: Path, tmp_path: Path) -> None:
    """A callback from C prints and drops the exception of a signal; the run ends at the next tile all the same."""
    for i in range(40):
        picture(tmp_path / f"in/{i:02}.png", seed=i)

    class Swallowing(Lines):
        def begin(self, source: Path) -> None:
            if self._finished == 1:
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGTERM)

    jobs = collect([tmp_path / "in"], tmp_path / "out")
    with interrupt.handle_signals(), restort.load(weights) as model:
        summary = restore_files(model, jobs, tmp_path / "out", Options(), Swallowing(len(jobs), quiet=True))
        assert interrupt.received() == signal.SIGTERM
    assert summary.interrupted and 1 <= summary.count("done") < 10 and summary.count("failed") == 0


def test_an_interruption_between_two_pictures(
    upscale: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal falls into the bookkeeping of a finished picture, which is counted all the same."""
    end, signals = Attempts.end, [signal.SIGTERM]

    def interrupted(self: Attempts, source: Path, *, finished: bool = True) -> None:
        if finished and signals:
            signal.raise_signal(signals.pop())
        end(self, source, finished=finished)

    monkeypatch.setattr(Attempts, "end", interrupted)
    first = upscale(photos, "-o", tmp_path / "out")
    assert first.status == 143 and first.report["totals"]["interrupted"]
    assert first.report["totals"]["done"] >= 1 and first.report["totals"]["failed"] == 0
    assert upscale(photos, "-o", tmp_path / "out").status == 0


class Gone:
    """A stderr whose terminal has gone, or whose disk is full."""

    encoding = "utf-8"

    def __init__(self, error: Exception, terminal: bool) -> None:
        self.error, self.terminal = error, terminal
        self.tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return self.terminal

    def fileno(self) -> int:
        raise ValueError("no file")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "input/output error"),
        OSError(28, "no space"),
        BrokenPipeError(),
        ValueError("closed"),
        None,
    ],
)
def test_messages_that_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
    photos: Path,
    tmp_path: Path,
    terminal: bool,
    error: Exception | None,
) -> None:
    """The work is done, and what fails has its exit status. None: a program without a console has no stderr."""
    (photos / "bad.png").write_bytes(b"no picture")
    stderr = None if error is None else Gone(error, terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    command = ["run", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    statuses = [main(command), main([*command, "--precision", "none"]), main(["upscale", "absent.png"])]
    monkeypatch.undo()
    assert statuses == [1, 2, 1]
    assert stderr is None or stderr.tried
    assert {path.name for path in (tmp_path / "out").rglob("*.*g") if path.is_file()} == {
        "a.png",
        "b.jpg",
        "c.png",
    }


def test_progress_bar_on_a_terminal(weights: Path, photos: Path, tmp_path: Path) -> None:
    """Through a pseudo-terminal: a bar with rate and time left, and the errors above it."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    (photos / "bad.png").write_bytes(b"")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # a new one has no rows
    command = [*FAKE, "upscale", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    environment = os.environ | {"FAKE_SECONDS": "0.4", "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environment, stderr=follower, stdout=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 1
    text = shown.decode()
    assert ("left" in text and "s/file" in text) or "files/s" in text
    assert "the file is empty" in text and "3 done, 1 failed of 4" in text


def test_denoise_and_run(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = write_weights(tmp_path / "clean.safetensors", RESTORMER)
    for command in ("denoise", "deblur", "run"):
        out = tmp_path / command
        arguments = [command, str(photos), "-o", str(out), "--weights", str(weights), "--json", "--quiet"]
        assert main(arguments) == 0
        result = Result(0, capfd.readouterr())
        assert result.report["model"]["scale"] == 1 and result.err == ""
        assert np.array_equal(read(out / "a.png").pixels, 255 - read(photos / "a.png").pixels)


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
