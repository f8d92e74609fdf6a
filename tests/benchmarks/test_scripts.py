"""Every benchmark explains itself and lists its cases on a computer without a GPU; every variant can be launched."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
MODULES = {"harness", "model_errors", "peers", "plugin_checks", "quantization_errors", "workloads"}
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in MODULES)
LISTING = [name for name in SCRIPTS if name.startswith(("bench_", "build_", "profile_", "tune_"))]


def call(script: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_few() -> None:
    assert len(SCRIPTS) <= 14


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str) -> None:
    assert "usage:" in call(script, "--help")
    readme = (BENCHMARKS / "README.md").read_text("utf-8")
    assert f"`{script}.py`" in readme, "benchmarks/README.md says what every script is for"


@pytest.mark.parametrize("script", LISTING)
def test_cases_are_listed(script: str) -> None:
    cases = call(script, "--list").splitlines()
    assert len(cases) > 1 and len(set(cases)) == len(cases)


def test_every_variant_can_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, constants and grids of all ops, on 'meta': a kernel that was renamed or changed shows here."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tune: Any = importlib.import_module("tune_kernels")
    from restort.kernels.gpu_target import planning_for

    with planning_for(90):
        tuner = tune.Tuner("float16", "meta")
        for case in tune.cases(list(tune.OPS), [(64, 64)]):
            launch = tuner.launch(case)
            assert launch.grid and launch.flops > 0 and launch.moved > 0, str(case)
            assert tuner.problem(case).outputs(launch), str(case)
            usual = tuner.problem(case).launch(case.form, {}).constants
            assert {name for name in case.constants if name.isupper()} <= usual.keys() or tune.OPS[
                case.op
            ].elan
