"""benchmarks/accuracy.py quantize: rows that are kept, and mistakes that do what they are called."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from restort.profiling.synthetic import dead_leaves  # noqa: E402
from restort.weights.checkpoint import load_weights  # noqa: E402
from tests.fakes.fake_backend import ELAN, write_weights  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("quantization_errors")


def test_rows_are_kept_for_the_same_weights_and_settings(module: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    named: dict[str, Any] = {"table": "ptq", "model": "m", "dataset": "set5", "weights_sha256": "a"}
    named["settings"] = {"limit": None}
    tables = module.Tables(output, {"device": "cpu"})
    rows = tables.rows(named)
    assert tables.add(rows, "fp32", lambda: 32.0, None) == 32.0
    assert tables.add(rows, "int8", lambda: 31.98, 32.0) == 31.98
    again = module.Tables(output, {"device": "cpu"})
    assert again.add(again.rows(named), "int8", lambda: pytest.fail("measured again"), 32.0) == 31.98
    assert again.find("m", "set5", {"limit": None}) == 32.0
    with pytest.raises(SystemExit, match="lacks m on set14"):
        again.find("m", "set14", {"limit": None})
    assert json.loads(output.read_text())["tables"][0]["rows"][1]["loss_db"] == 0.02
    assert again.rows({**named, "weights_sha256": "b"}) == []  # other weights begin anew
    assert len(again.record["tables"]) == 1


def test_every_mistake_is_worse_than_none(module: ModuleType, tmp_path: Path) -> None:
    spec = dataclasses.replace(ELAN[2], channels=15)  # divided by three window sizes
    weights = load_weights(write_weights(tmp_path / "x2.safetensors", spec))
    rng = np.random.default_rng(0)
    for name, values in weights.state.items():  # random ones are ill-conditioned
        if "project_inp" in name and name.endswith("0.weight"):
            values[:] = rng.normal(0, 0.05, values.shape)
    x = dead_leaves(32, 32, 3, 1)[None]
    simulation = module.Simulation(weights, [x])
    network = simulation.network()
    with torch.no_grad():
        reference = (network(torch.from_numpy(x) * simulation.scale) / simulation.scale).numpy()

    def error(**mistake: Any) -> float:
        with simulation.run(module.Mistake("", **mistake)) as run:
            return float(np.square(run(x) - reference).mean())

    none = error()
    assert 0 < none < float(np.square(reference).mean()) / 100
    for mistake in (
        {"share": 0.9},
        {"sums": True, "share": 0.9},
        {"ends": True, "share": 0.9},
        {"unit_scale": True},
    ):
        assert error(**mistake) > none, mistake
    assert error(scores=1e-3) != none and error(per_tensor=True) != none
    assert error() == none  # what was patched is put back


def test_shares_of_values(module: ModuleType) -> None:
    x = torch.arange(-100.0, 0.0).reshape(10, 10)
    assert module.largest_of(x, 1.0) == 100 and module.largest_of(x, 0.9) == 90
