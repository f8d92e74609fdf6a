"""`restort cache`: lists and clears, and leaves downloads alone unless told otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from restort.backends.tensorrt.cache import EngineCache
from restort.cli.main import main
from tests.backends.tensorrt.test_cache import Maker, key


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path))
    return tmp_path


def fill(root: Path) -> None:
    EngineCache().obtain(key(), Maker(b"x" * 1000), lambda line: None)
    for name in ("graphs", "weights", "timings", "something/deeper"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_bytes(b"0" * 100)


def test_an_empty_cache(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0 and main(["cache", "clear"]) == 0
    told = capsys.readouterr()
    assert "0.0 MB in" in told.out and "nothing to remove" in told.err


def test_listing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root)
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    for part in (
        "Tiny x2",
        "fp16",
        "1x8x8..1x64x64..1x128x128",
        "NVIDIA H100",
        "graphs",
        "something",
        str(root),
    ):
        assert part in out
    assert main(["cache", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engines"][0]["compute_capabilities"] == ["9.0"] and found["parts"]["weights"] == 100


def test_clearing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(root)
    assert main(["cache", "clear", "graphs", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["removed_bytes"] == {"graphs": 100}
    assert main(["cache", "clear", "--unused-for", "2"]) == 0
    assert EngineCache().entries() and (root / "timings" / "file").exists()
    os.utime(root / "timings" / "file", (1, 1))
    assert main(["cache", "clear", "--unused-for", "2"]) == 0
    assert not (root / "timings" / "file").exists()
    assert main(["cache", "clear"]) == 0
    assert not EngineCache().entries() and not (root / "something" / "deeper").exists()
    assert (root / "weights" / "file").exists()
    assert main(["cache", "clear", "weights"]) == 0
    assert not (root / "weights" / "file").exists()


@pytest.mark.parametrize("arguments", [["clear", "everything"], ["clear", "--unused-for", "long"], []])
def test_wrong_usage(root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
