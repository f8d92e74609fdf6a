"""`restort serve` as a process: it says where it listens, restores, and ends with a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for _name in ("fastapi", "multipart", "prometheus_client", "uvicorn", "httpx"):
    pytest.importorskip(_name)
import httpx  # noqa: E402

from restort.cli.main import main  # noqa: E402

PICTURE = Path(__file__).parents[2] / "examples" / "osprey_small.jpg"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "restort", "serve", "--port", "0", "--backend", "onnxruntime", "--offline"],
        env={**os.environ, "RESTORT_CACHE": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.search(r"serving (http://127\.0\.0\.1:\d+)", said)
    assert found is not None, said
    yield found[1], process
    process.kill()
    process.wait()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_restores_and_ends_with_a_signal(
    server: tuple[str, subprocess.Popen[str]], number: int, tmp_path: Path
) -> None:
    address, process = server
    assert httpx.get(f"{address}/healthz", timeout=60).json() == {"status": "ok"}
    if number == signal.SIGINT:
        with PICTURE.open("rb") as file:
            answer = httpx.post(
                f"{address}/v1/restore?task=upscale&scale=2&format=jpg", files={"file": file}, timeout=200
            )
        assert answer.status_code == 200, answer.text
        made = tmp_path / "made.jpg"
        asked = ["--scale", "2", "--backend", "onnxruntime", "--quiet"]
        assert main(["upscale", str(PICTURE), "-o", str(made), *asked]) == 0
        assert answer.content == made.read_bytes()
    process.send_signal(number)
    assert process.wait(60) in (0, 128 + number, -number)
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port, "--work", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in error and "--port" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "is not a port"),
        (["--model", "no-such"], "no-such"),
        (["--max-pixels", "-1"], "a number such as 2e9"),
    ],
)
def test_wrong_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err
