"""The parts of benchmarks/plugin_checks.py, on a fake library and GPU: what they record."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restort.backends.tensorrt import plugin
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import ELAN, write_weights
from tests.fakes.fake_gpu import World, playing

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with playing(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module: Any = importlib.import_module("plugin_checks")
    weights = load_weights(write_weights(tmp_path / "tiny.safetensors", ELAN[2]))
    monkeypatch.setattr(module, "weights_of", lambda network: weights)
    monkeypatch.setattr(module, "SIZES", ((32, 48), (16, 32), (64, 16)))
    monkeypatch.setattr(module, "HEIGHT", 32)
    monkeypatch.setattr(module, "WIDTH", 48)
    monkeypatch.setattr(module, "repeated", lambda once, seconds: [once(), once()])
    return module


def test_several_sizes(world: World, checks: Any) -> None:
    found = checks.sizes(argparse.Namespace())
    assert set(found["alone"]) == set(found["together"]) == {"32x48", "16x32", "64x16"}
    assert all(record["equal_bits"] for record in found["together"].values()) and found["again"] == [True] * 3
    assert "takes inputs of 1x32x48, 1x16x32, 1x64x16" in found["refused"]
    assert len(found["engines"]) == 4 and len(world.builds) == 4


def test_single(world: World, checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "is_registered", lambda flavour: bool(world.loaded))
    found = checks.single(argparse.Namespace())
    assert found["registered"] and found["library"] == "TensorRT 8.6.0" and found["calls"] == 2


def test_compatible_and_lean(world: World, checks: Any, tmp_path: Path) -> None:
    args = argparse.Namespace(output=tmp_path / "found.json")
    found = checks.compatible(args)
    assert found["relative_l2"] == 0 and len(found["engines"]) == 2
    assert {bool(engine["flags"]) for engine in found["engines"]} == {False, True}
    world.flavour.version, world.flavour.capabilities.builds = "10.16.1.11", False
    assert checks.lean(args)["relative_l2"] == 0 and len(world.builds) == 2


def test_a_part_that_fails_is_recorded(checks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "found.json"
    found = iter([{"error": "no result within 1 s"}, {"median_ms": 1.0}])
    monkeypatch.setattr(checks, "in_a_process", lambda name, args: next(found))
    monkeypatch.setattr("sys.argv", ["plugin_checks.py", "--only", "single", "--output", str(target)])
    assert checks.main() == 1 and '"failures": [\n  {\n   "part": "single"' in target.read_text()
    assert checks.main() == 0 and '"failures": []' in target.read_text()
