"""benchmarks/bench_tensorrt.py on a played machine: its records, and that it goes on where it stopped."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fake_backend import ELAN, RESTORMER
from tests.fakes.fake_gpu import World, playing


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with playing(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    workloads = importlib.import_module("workloads")
    tiny = {"restormer": RESTORMER, "elan-light-x4": replace(ELAN[2], channels=30)}
    monkeypatch.setattr(workloads, "NETWORKS", tiny)
    workloads.weights_of.cache_clear()
    yield importlib.import_module("bench_tensorrt")
    workloads.weights_of.cache_clear()
    for name in ("workloads", "bench_tensorrt", "harness"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "dynamic"},
        {"level": 5},
        {"batch": 2},
        {"form": "norm layer"},
        {"form": "kernels fused"},
    ],
)
def test_a_record_says_everything(
    world: World, script: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(script, "repeated", lambda once, seconds: [once() for _ in range(3)])
    case = script.Case("elan-light-x4", 32, 48, **options)
    record = script.measure(case, None)
    json.dumps(record)
    assert record["median_ms"] == 1.5 and record["cuda_graph"] and record["built_now"]
    assert record["roofline_ms"] > 0
    assert [layer["ms"] for layer in record["layers"]] == [0.25, 0.75]
    assert "myelin 75 %" in script.by_kind(record["layers"])
    fused = case.form == "kernels fused"
    assert ("aot" in record, world.builds[-1].kernels == "fused") == (fused, fused)


def test_it_goes_on_where_it_stopped(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def in_a_process(case: Any, plain: Any, limit: float) -> dict[str, Any]:
        asked.append(str(case))
        if case.network == "restormer" and case.height == 720 and not case.form:
            raise importlib.import_module("harness").Failed("no result within 330 s")
        return {"median_ms": 5.0, "build_s": 30.0, "peak_mib": 99.0, "layers": [{"name": "a", "ms": 1.0}]}

    monkeypatch.setattr(script, "in_a_process", in_a_process)
    wanted = list(script.cases(False))
    args = argparse.Namespace(seconds=1e6, output=tmp_path / "r.json", plain=None, again=None)
    assert script.run(args, wanted) == 1 and len(asked) == len(wanted)
    asked.clear()
    assert script.run(args, wanted) == 1 and asked == ["restormer-720x1280 x1 fp16"]
    found = json.loads(args.output.read_text())
    assert len(found["records"]) == len(wanted) - 1 and len(found["failures"]) == 1
    timelines = json.loads((tmp_path / "r_layers.json").read_text())
    assert len(timelines) == len(wanted) - 1 and "layers" not in found["records"][0]
    assert "no result within 330 s" in capsys.readouterr().out
