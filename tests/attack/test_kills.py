"""Runs that are killed or interrupted at any moment and begun again make the same files, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.attack import SEED, count
from tests.fakes.command_line import FAKE
from tests.fakes.fake_backend import ELAN, write_weights

PICTURES = 16
STATUS = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
COMPLETE = 0


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.timeout(7200)
def test_killed_runs_lose_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    for i in range(PICTURES):
        pixels = random.integers(0, 256, (20 + i, 30, 3), np.uint8)
        write(tmp_path / f"in/{i:02}{('.png', '.jpg', '.tif', '.webp')[i % 4]}", Picture(pixels))
    weights = write_weights(tmp_path / "x2.safetensors", ELAN[2])
    assert run(tmp_path, weights, "expected").wait(120) == COMPLETE
    expected = contents(tmp_path / "expected")
    left = count(4, 40)
    while left > 0:  # each round kills runs into one folder until it is complete
        out = f"out-{left}"
        finished = False
        while not finished and left > 0:
            name = "SIGKILL" if random.random() < 0.5 else tuple(STATUS)[random.integers(1, 4)]
            finished = end_somewhere(tmp_path, weights, out, name, random)
            left -= 1
        assert run(tmp_path, weights, out).wait(120) == COMPLETE, (tmp_path / "stderr").read_text()
        assert contents(tmp_path / out) == expected


def run(folder: Path, weights: Path, out: str) -> subprocess.Popen[bytes]:
    command = [
        *FAKE,
        "run",
        str(folder / "in"),
        "-o",
        str(folder / out),
        "--weights",
        str(weights),
        "--quiet",
    ]
    environment = os.environ | {
        "FAKE_SECONDS": "0.02",
        "RESTORT_DEBUG": "1",
        "RESTORT_CACHE": str(folder / "cache"),
    }
    with (folder / "stderr").open("wb") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def end_somewhere(folder: Path, weights: Path, out: str, name: str, random: np.random.Generator) -> bool:
    """Send a signal after one to five more pictures; return whether the run was complete before."""
    before = made(folder / out)
    wanted = before + int(random.integers(1, 6))
    process = run(folder, weights, out)
    deadline = time.monotonic() + 60
    while process.poll() is None and made(folder / out) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(float(random.random()) * 0.03)
    process.send_signal(getattr(signal, name))
    status = process.wait(60)
    # the signal itself ends a process that has not begun its work, or has finished it
    assert status in (STATUS[name], COMPLETE, -getattr(signal, name)), (folder / "stderr").read_text()
    for path in (folder / out).iterdir():  # every file under a name of its own is whole
        assert path.name.startswith(".") or path.stat().st_size > 0
    return status == COMPLETE


def made(out: Path) -> int:
    return sum(not path.name.startswith(".") for path in out.iterdir()) if out.exists() else 0


def contents(out: Path) -> dict[str, bytes]:
    """What lies in the folder; a temporary file that was left behind would be in it."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
