"""A real Ray on this machine: two workers, one killed with SIGKILL in the middle of its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.cluster.test_driver import files, made

pytest.importorskip("ray", reason="the extra 'cluster' is not installed")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

COUNT = 40
RESTORT = [sys.executable, "-m", "restort"]
OPTIONS = [
    "--model",
    "elan-light-x4",
    "--backend",
    "onnxruntime",
    "--precision",
    "fp32",
    "--offline",
    "--quiet",
]


def test_a_killed_worker(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "in" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, Picture(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)))
    environment = os.environ | {"RESTORT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = [str(tmp_path / "in"), *OPTIONS]
    subprocess.run(
        [*RESTORT, "run", *run, "-o", tmp_path / "alone", "--threads", "1"], env=environment, check=True
    )

    out = tmp_path / "out"
    command = [*RESTORT, "cluster", "run", *run, "-o", out, "--address", "local", "--workers", "2", "--json"]
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        victim = _worker_at_work(out, driver)
        os.kill(victim, signal.SIGKILL)
        printed, errors = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, errors
    totals = json.loads(printed)["totals"]
    assert (totals["done"], totals["failed"], totals["worker_deaths"]) == (COUNT, 0, 1)
    assert files(out) == files(tmp_path / "alone")
    assert len(made(out)) == COUNT and set(made(out).values()) == {1}


def _worker_at_work(out: Path, driver: subprocess.Popen[str]) -> int:
    """Wait until both workers have finished a picture; return the process of one, whose name its records bear."""
    end = time.monotonic() + 240
    while time.monotonic() < end and driver.poll() is None:
        found = [path for path in (out / ".restort/workers").glob("*.jsonl") if path.stat().st_size > 1000]
        if len(found) == 2:
            return int(found[0].stem.split("-")[-2])
        time.sleep(0.02)
    raise AssertionError(f"the workers did not begin; the driver's status is {driver.poll()}")
