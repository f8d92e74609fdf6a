"""`restort bench`: complete records, failures that stay alone, plots. No speed is asserted."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.cli.main import main
from restort.errors import RestortError, UsageError
from restort.profiling import machine, plots
from restort.profiling.sides import Side
from restort.profiling.speed import Settings, bench, table
from restort.profiling.worker import timer_of
from restort.profiling.worker_process import Case, CaseError, Child, Measured
from restort.runner import Array, Runner
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import ELAN, write_weights

NUMBERS = ["median_ms", "p5_ms", "p95_ms", "images_per_second", "peak_mib", "create_ms", "first_call_ms"]
CASE = [
    "workload",
    "model",
    "architecture",
    "weights_sha256",
    "backend",
    "precision",
    "batch",
    "height",
    "width",
]
ABOUT = ["calls", "rounds", "timer", "error", "device", "machine", "versions", "command", "date"]
WANTED = [*CASE, *NUMBERS, *ABOUT]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(
        tmp_path_factory.mktemp("weights") / "tiny-elan.safetensors", replace(ELAN[2], channels=30)
    )


@pytest.fixture(scope="module")
def result(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]], Path]:
    """One run of the command: a backend that works and a precision it has not, two sizes."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTORT_CACHE", str(folder / "cache"))
        status = main(
            [
                *["bench", "--weights", str(weights), "--backend", "onnxruntime,onnxruntime:bf16"],
                *[
                    "--size",
                    "32x48",
                    "16x16",
                    "--batch",
                    "2",
                    "--seconds",
                    "0.05",
                    "--threads",
                    "1",
                    "--quiet",
                ],
                *["-o", str(folder / "b.json"), "--plot", str(folder / "b.svg"), "--name", "tiny"],
            ]
        )
    return status, json.loads((folder / "b.json").read_text())["records"], folder / "b.svg"


def test_records_are_complete(result: tuple[int, list[dict[str, Any]], Path]) -> None:
    _, records, _ = result
    good = [record for record in records if record["error"] is None]
    assert [(r["workload"], r["batch"], r["height"], r["width"]) for r in good] == [
        ("tiny-32x48", 2, 32, 48),
        ("tiny-16x16", 2, 16, 16),
    ]
    for record in good:
        assert set(WANTED) <= record.keys()
        assert all(math.isfinite(record[name]) and record[name] > 0 for name in NUMBERS)
        assert record["p5_ms"] <= record["median_ms"] <= record["p95_ms"]
        assert record["images_per_second"] == pytest.approx(2000 / record["median_ms"], rel=1e-3)
        assert record["calls"] >= record["rounds"] >= 5
        assert record["backend"] == "onnxruntime" and record["precision"] == "fp32"
        assert record["architecture"] == "elan" and len(record["weights_sha256"]) == 64
        assert {"cores", "load_before", "clocks", "clocks_after"} <= record["machine"].keys()
        assert {"python", "onnxruntime", "numpy"} <= record["versions"].keys()


def test_a_failing_case_is_recorded_and_the_rest_go_on(
    result: tuple[int, list[dict[str, Any]], Path],
) -> None:
    status, records, _ = result
    bad = [record for record in records if record["error"] is not None]
    assert status == 1 and len(records) == 4 and len(bad) == 2
    for record in bad:
        assert "bf16" in record["error"] and record["precision"] == "bf16"
        assert set(WANTED) <= record.keys() and all(record[name] is None for name in NUMBERS)
    lines = table(records).splitlines()
    assert len(lines) == 5 and sum("does not support bf16" in line for line in lines) == 2


def test_the_plot_is_xml(result: tuple[int, list[dict[str, Any]], Path]) -> None:
    root = ElementTree.parse(result[2]).getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")}
    assert root.tag.endswith("svg") and {"onnxruntime fp32", "32x48", "16x16"} <= texts


def test_plots_have_a_line_for_each_backend() -> None:
    pytest.importorskip("matplotlib")
    records = [
        {
            "model": model,
            "backend": backend,
            "precision": "fp32",
            "batch": batch,
            "height": size,
            "width": size,
        }
        | {"median_ms": size / 10, "images_per_second": 1.0}
        for model in ("x", "y")
        for backend in ("a", "b")
        for size in (16, 32)
        for batch in (1, 4)
    ]
    drawn = plots.speed(records)
    assert drawn == plots.speed(records)
    ElementTree.fromstring(drawn)
    assert all(name in drawn.decode() for name in ("x a fp32", "x b fp32", "y a fp32", "y b fp32"))
    with pytest.raises(RestortError, match="nothing to plot"):
        plots.speed([{**records[0], "median_ms": None}])


def test_a_case_that_takes_too_long_or_dies_fails_alone(weights: Path) -> None:
    loaded = load_weights(weights)
    sides = [Side("onnxruntime")]
    plan = Settings(weights, "tiny", loaded.spec, loaded.digest, sides, ((16, 16),), limit=0.01, alone=True)
    [record] = bench(plan)
    assert record["error"] == "no result within 0.01 s" and record["calls"] == 0
    with Child(Case("onnxruntime", "fp32", 1, 16, 16), weights, 1, 60) as child:
        child._process.kill()
        with pytest.raises(CaseError, match="killed, most likely because the memory"):
            child.prepare()
    child = Child(Case("onnxruntime", "fp32", 1, 16, 16), weights.with_name("gone"), 1, 60)
    with child, pytest.raises(CaseError, match="gone"):
        child.prepare()
    assert child._process.poll() is not None


def test_statistics_of_a_case() -> None:
    measured = Measured(Case("a", "fp32", 4, 8, 8), [3.0, 1.0, 2.0, 10.0], 2, {"host_peak_bytes": 3 << 20})
    record = measured.record()
    p5, median, p95 = np.percentile([1, 2, 3, 10], (5, 50, 95))
    assert (record["p5_ms"], record["median_ms"], record["p95_ms"]) == pytest.approx((p5, median, p95))
    assert record["images_per_second"] == 1600 and record["peak_mib"] == 3
    measured.about["device_peak_bytes"] = 5 << 20
    assert measured.record()["peak_mib"] == 5 and measured.record()["host_peak_mib"] == 3


def test_a_runner_may_bring_its_own_clock() -> None:
    class Host(Runner):
        def __call__(self, x: Array, /) -> Array:
            return x

        def close(self) -> None:
            pass

    class Device(Host):
        def timer(self, x: Array) -> Callable[[], float]:
            return lambda: 0.125

    picture = np.zeros((1, 3, 2, 2), np.float32)
    timer, name = timer_of(Device(), picture)
    assert timer() == 0.125 and "device" in name
    timer, name = timer_of(Host(), picture)
    assert timer() >= 0 and name.startswith("wall clock")


def test_the_machine_is_described() -> None:
    about = machine.provenance()
    assert about["device"] and about["machine"]["cores"] >= 1 and about["machine"]["memory_gib"] > 0
    peak = machine.peak_rss()
    assert peak is None or peak > 10 << 20
    assert machine.clocks().keys() == {"frequency_mhz", "governor"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "onnxruntime,caffe"], "unknown backend 'caffe'"),
        (["--precision", "fp32,fp7"], "unknown precision 'fp7'"),
        (["--size", "12"], "is not height x width"),
        (["--size", "17x32", "--backend", "onnxruntime"], "multiples of 16"),
        (["--batch", "0"], "less than 1"),
        (["--seconds", "-1"], "above 0"),
    ],
)
def test_wrong_options_get_one_sentence(
    weights: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--weights", str(weights), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_size_is_measured_that_the_network_does_not_take(weights: Path) -> None:
    loaded = load_weights(weights)
    with pytest.raises(UsageError, match="multiples of 16"):
        bench(Settings(weights, "tiny", loaded.spec, loaded.digest, [Side("onnxruntime")], ((8, 16),)))
