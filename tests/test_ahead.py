"""`--ahead`: an engine for a machine to come, built with TensorRT-RTX on one without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakebackend import ELAN, write_weights

from restort.cli import main


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    return str(write_weights(tmp_path / "tiny.safetensors", replace(ELAN[2], channels=30)))


def test_it_is_for_tensorrt_alone(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "no.png", "-o", "out.png", "--weights", weights, "--ahead", "8.9"]
    assert main(command) == 2 and "--backend tensorrt" in capsys.readouterr().err
    assert main([*command[:-1], "ada"]) == 2


def test_an_engine_is_built_and_kept(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    command = ["upscale", "no.png", "-o", "out", "--weights", weights, "--backend", "tensorrt", "--json"]
    assert main([*command, "--ahead", "9.0"]) == 2
    assert "9.0" in capsys.readouterr().err
    assert main([*command, "--ahead", "8.6,8.9"]) == 0
    told = capsys.readouterr()
    about = json.loads(told.out)
    assert about["targets"] == ["8.6", "8.9"] and about["gpu"] is None and "there is none yet" in told.err
    assert main([*command, "--ahead", "8.6,8.9"]) == 0
    assert "is there already" in capsys.readouterr().err
