"""A run with --offline opens no connection and writes nothing but its output and the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GUARD = """
import sys

def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        print("CONNECTION", event, arguments, file=sys.stderr, flush=True)

sys.addaudithook(guard)
from restort.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_offline_is_silent(tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    home, cache, out = tmp_path / "home", tmp_path / "cache", tmp_path / "out"
    home.mkdir()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "a.png")
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "RESTORT_CACHE": str(cache)}
    before = set(tmp_path.rglob("*"))
    command = [
        "upscale",
        str(tmp_path / "a.png"),
        "-o",
        str(out / "a.png"),
        "--offline",
        "--backend",
        backend,
    ]
    run = subprocess.run(
        [sys.executable, "-c", GUARD, *command], cwd=home, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "CONNECTION" not in run.stderr
    written = {path for path in set(tmp_path.rglob("*")) - before if cache not in (path, *path.parents)}
    assert written == {out, out / "a.png"}
