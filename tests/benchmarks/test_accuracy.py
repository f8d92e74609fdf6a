"""benchmarks/accuracy.py: rows of outputs, rows kept of the record, and why there are none."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.fakes.fake_backend import ELAN, write_weights

pytest.importorskip("skimage", reason="scores need scikit-image (restort[evaluate])")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RUNS = ["tensorrt:fp16", "tensorrt:mixed"]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("accuracy")
    monkeypatch.setitem(sys.modules, "accuracy", found)
    monkeypatch.setattr(found, "SETS", {"tiny": "set"})
    return found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Weights, one picture, and the outputs of the reference and of fp16, which is wrong by 0.01 in one number."""
    write_weights(tmp_path / "tiny.safetensors", ELAN[2])
    clean = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    np.savez(tmp_path / "set.npz", clean0=clean, degraded0=clean[::2, ::2])
    y = clean.astype(np.float32) / 255 * 0.9
    put(tmp_path, "torch-fp32", y)
    wrong = y.copy()
    wrong[0, 0, 0] += 0.01
    put(tmp_path, "tensorrt-fp16", wrong)
    return tmp_path


def put(work: Path, run: str, y: np.ndarray) -> None:
    folder = work / "tiny" / run
    folder.mkdir(parents=True)
    np.save(folder / "0.npy", y)
    (folder / "done.json").write_text('{"device": "a GPU"}')


def rows(output: Path) -> dict[str, dict[str, Any]]:
    (table,) = json.loads(output.read_text())["tables"]
    return {f"{row['backend']}:{row['precision']}": row for row in table["rows"]}


def test_rows_are_scored_and_kept(module: ModuleType, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = work / "out" / "record.json"
    module.table(work, output, RUNS)
    found = rows(output)
    assert found["torch:fp32"]["absolute"]["max"] == 0
    assert found["tensorrt:fp16"]["absolute"]["max"] == pytest.approx(0.01, rel=1e-3)
    assert found["tensorrt:fp16"]["about"] == {"device": "a GPU"}
    assert found["tensorrt:mixed"]["error"] == found["onnxruntime:fp32"]["error"] == "has not been run"
    assert "| tensorrt fp16 |" in capsys.readouterr().out

    for run in ("torch-fp32", "tensorrt-fp16"):  # elsewhere, later: only mixed is there
        (work / "tiny" / run).rename(work / "tiny" / f"gone-{run}")
    put(work, "tensorrt-mixed", np.zeros((48, 48, 3), np.float32))
    module.table(work, output, RUNS)
    assert rows(output)["tensorrt:fp16"] == found["tensorrt:fp16"]
    assert rows(output)["tensorrt:mixed"]["error"] == "there is nothing to compare with: run torch:fp32"

    write_weights(work / "tiny.safetensors", ELAN[2], seed=1)  # of other weights nothing stays
    module.table(work, output, RUNS)
    assert rows(output)["tensorrt:fp16"]["error"] == "has not been run"
