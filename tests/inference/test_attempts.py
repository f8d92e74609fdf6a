"""A file that kills its run is set aside by the next one, told, and tried again on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from restort.errors import RestortError
from restort.imaging import trial
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference import attempts
from restort.inference.attempts import DEATHS, Attempts, key_of
from tests.fakes.command_line import FAKE
from tests.fakes.fake_backend import ELAN, write_weights


def died(folder: Path, *sources: Path) -> None:
    """What a run leaves that dies with `sources` in hand: a record, and a lock that nobody holds."""
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    (folder / "attempts/1-dead.json").write_text(json.dumps([key_of(source) for source in sources]))
    (folder / "attempts/1-dead.lock").write_text("")


def open_and_close(folder: Path, *, retry: bool = False) -> Attempts:
    run = Attempts(folder, retry=retry)
    run.close()
    return run


def test_a_suspect_that_can_be_read_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []
    monkeypatch.setattr(attempts, "survives", tried.append)
    died(tmp_path, tmp_path / "a.png")
    told: list[str] = []
    run = Attempts(tmp_path, notify=told.append)
    run.check(tmp_path / "b.png")
    assert not tried
    run.check(tmp_path / "a.png")
    assert tried == [tmp_path / "a.png"] and "in a process of its own" in told[0]
    run.begin(tmp_path / "a.png")
    run.end(tmp_path / "a.png")
    run.close()
    open_and_close(tmp_path).check(tmp_path / "a.png")
    assert len(tried) == 1, "it was finished: no suspect any more"
    assert not list((tmp_path / "attempts").iterdir())


def test_a_suspect_whose_trial_dies_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "survives", lambda path: "reading it ended the process (status -6)")
    died(tmp_path, tmp_path / "a.png")
    with pytest.raises(RestortError, match=r"a\.png is set aside: reading it ended.*--retry tries it again"):
        open_and_close(tmp_path).check(tmp_path / "a.png")
    monkeypatch.setattr(attempts, "survives", lambda path: pytest.fail("tried again"))
    with pytest.raises(RestortError, match="is set aside"):
        open_and_close(tmp_path).check(tmp_path / "a.png")
    open_and_close(tmp_path, retry=True).check(tmp_path / "a.png")
    open_and_close(tmp_path).check(tmp_path / "a.png")


def test_after_several_deaths_it_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing can kill a run, too, for lack of memory."""
    monkeypatch.setattr(attempts, "survives", lambda path: None)
    for _ in range(DEATHS - 1):
        died(tmp_path, tmp_path / "a.png")
        open_and_close(tmp_path).check(tmp_path / "a.png")
    died(tmp_path, tmp_path / "a.png")
    with pytest.raises(RestortError, match=f"{DEATHS} runs died while they had it in hand"):
        open_and_close(tmp_path).check(tmp_path / "a.png")


def test_a_run_that_lives_is_no_suspect(tmp_path: Path) -> None:
    living = Attempts(tmp_path)
    living.begin(tmp_path / "a.png")
    open_and_close(tmp_path).check(tmp_path / "a.png")
    living.close()


@pytest.mark.parametrize("content", ["", "no JSON", "7", '{"a": 1}', "[1, null]"])
def test_damaged_records_are_void(tmp_path: Path, content: str) -> None:
    died(tmp_path)
    (tmp_path / "attempts/1-dead.json").write_text(content)
    (tmp_path / "attempts/suspects.json").write_text(content)
    open_and_close(tmp_path).check(tmp_path / "a.png")


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("in the way")
    run = Attempts(tmp_path)
    run.begin(tmp_path / "a.png")
    run.end(tmp_path / "a.png")
    run.close()


def test_a_child_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", Picture(np.zeros((4, 4, 3), np.uint8)))
    assert trial.survives(tmp_path / "a.png") is None
    assert trial.survives(tmp_path / "gone.png") is None, "an error of its own is told when it is read"
    run = subprocess.run

    def aborted(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        return run([sys.executable, "-c", "import os; os.abort()"], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(trial.subprocess, "run", aborted)
    assert "ended the process" in (trial.survives(tmp_path / "a.png") or "")


def test_a_killed_run_leaves_its_files_as_suspects(tmp_path: Path) -> None:
    """The whole way: a run dies with a picture in hand; the next one tries it, and makes it."""
    weights = write_weights(tmp_path / "x2.safetensors", ELAN[2])
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / "in" / name, Picture(np.zeros((8, 8, 3), np.uint8)))
    command = [*FAKE, "run", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    environment = os.environ | {"FAKE_SECONDS": "30", "RESTORT_CACHE": str(tmp_path / "cache")}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    records = tmp_path / "out/.restort/attempts"
    while first.poll() is None and not any(path.stat().st_size > 2 for path in records.glob("*.json")):
        pass
    first.kill()
    first.wait()
    (lock,) = records.glob("*.lock")
    with FileLock(lock, timeout=5):
        pass
    second = subprocess.run(command, env=environment | {"FAKE_SECONDS": "0"}, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "a.png was in hand when an earlier run died" in second.stderr
    assert "3 done of 3" in second.stderr
    assert not list(records.iterdir())


def test_a_repaired_file_is_no_suspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "survives", lambda path: "reading it ended the process (status -6)")
    source = tmp_path / "a.png"
    source.write_bytes(b"a bomb")
    died(tmp_path, source)
    with pytest.raises(RestortError, match="is set aside"):
        open_and_close(tmp_path).check(source)
    source.write_bytes(b"a picture")
    open_and_close(tmp_path).check(source)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_links_and_pipes_are_left_alone(tmp_path: Path) -> None:
    """In the output folder of somebody else. A link would have its target emptied by the lock, a pipe would block."""
    precious, folder = tmp_path / "precious", tmp_path / "attempts"
    precious.write_text('["a"]')
    folder.mkdir()
    (folder / "1-link.lock").symlink_to(precious)
    (folder / "2-pipe.lock").write_text("")
    os.mkfifo(folder / "2-pipe.json")
    os.mkfifo(folder / "suspects.json")
    open_and_close(tmp_path)
    assert precious.read_text() == '["a"]'
    (tmp_path / "other").mkdir()
    (tmp_path / "other/attempts").symlink_to(tmp_path / "away")
    open_and_close(tmp_path / "other")
    assert not (tmp_path / "away").exists()
