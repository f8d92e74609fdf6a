"""benchmarks/harness.py: records survive interruptions, a failing case ends nothing, workers answer or say why not."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORKER = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from harness import serve

def measure(case):
    print("noise of a library")
    if case["name"] == "dies":
        sys.stderr.write("out of luck\\n")
        os._exit(3)
    if case["name"] == "hangs":
        time.sleep(60)
    if case["name"] == "fails":
        raise ValueError("no  such\\nkernel")
    return {{"median_ms": 2.0, "pid": os.getpid()}}

sys.exit(serve(measure))
"""


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("harness")


@dataclass(frozen=True)
class Case:
    name: str

    @property
    def key(self) -> dict[str, Any]:
        return {"name": self.name}

    def __str__(self) -> str:
        return self.name


CASES = [Case("a"), Case("b"), Case("c")]


def describe(record: dict[str, Any]) -> str:
    return f"{record['median_ms']} ms"


def run(harness: Any, path: Path, broken: tuple[str, ...] = (), **options: Any) -> tuple[int, list[str]]:
    """Failures, and which cases were measured."""
    asked: list[str] = []

    def measure(case: Case, left: float) -> dict[str, Any]:
        asked.append(case.name)
        if case.name in broken:
            raise RuntimeError("CUDA error 700")
        return {"median_ms": 1.0}

    return harness.run_cases(CASES, harness.Records(path), measure, describe, **options), asked


def test_a_failing_case_does_not_end_the_run(harness: Any, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "deep" / "r.json"
    failed, asked = run(harness, path, broken=("b",))
    assert failed == 1 and asked == ["a", "b", "c"]
    held = json.loads(path.read_text())
    assert [r["name"] for r in held["records"]] == ["a", "c"]
    assert held["failures"][0]["error"] == "RuntimeError: CUDA error 700"
    for record in (*held["records"], *held["failures"]):
        assert record["versions"]["python"] and record["command"].startswith("python ") and record["date"]
    assert "FAILED" in capsys.readouterr().out


def test_a_run_continues_where_it_stopped(harness: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run(harness, path, broken=("b",))
    failed, asked = run(harness, path)
    assert failed == 0 and asked == ["b"]
    held = json.loads(path.read_text())
    assert len(held["records"]) == 3 and "failures" not in held
    assert run(harness, path, again=[CASES[2]]) == (0, ["c"])
    assert len(json.loads(path.read_text())["records"]) == 3


def test_a_half_written_file_is_set_aside(harness: Any, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "r.json"
    run(harness, path)
    half = path.read_text()[:-40]
    path.write_text(half)
    assert run(harness, path) == (0, ["a", "b", "c"])
    assert (tmp_path / "r.json.damaged").read_text() == half
    assert "not complete JSON" in capsys.readouterr().err
    assert len(json.loads(path.read_text())["records"]) == 3


def test_what_else_the_file_holds_stays(harness: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"profile": [1, 2], "records": [{"name": "a", "median_ms": 7.0}]}))
    assert run(harness, path) == (0, ["b", "c"])
    held = json.loads(path.read_text())
    assert held["profile"] == [1, 2] and held["records"][0]["median_ms"] == 7.0


def test_nothing_is_begun_when_time_is_up(harness: Any, tmp_path: Path, capsys: Any) -> None:
    assert run(harness, tmp_path / "r.json", seconds=14.0) == (0, [])
    assert "time is up: a" in capsys.readouterr().out


def test_names_choose_cases(harness: Any) -> None:
    names = [
        "restormer-256x256 fused:fp16",
        "restormer-256x256 fused:fp16 (first process)",
        "elan-x4 torch:fp16",
    ]
    cases = [Case(name) for name in names]
    assert harness.matching(cases, None) == cases
    assert harness.matching(cases, names[0]) == cases[:1]  # a whole name, although another begins with it
    assert harness.matching(cases, "restormer+first,elan") == cases[1:]
    assert harness.matching(cases, "openvino") == []


@pytest.fixture
def worker(harness: Any, tmp_path: Path) -> Any:
    script = tmp_path / "script.py"
    script.write_text(WORKER.format(benchmarks=str(BENCHMARKS)))
    made = harness.Worker(script)
    yield made
    made.close()


def test_a_worker_answers(harness: Any, worker: Any) -> None:
    first = worker.ask({"name": "a"}, 60)
    with pytest.raises(harness.Failed, match=r"^ValueError: no such kernel$"):
        worker.ask({"name": "fails"}, 60)
    assert worker.ask({"name": "b"}, 60) == first  # still there


def test_a_worker_that_dies_says_why(harness: Any, worker: Any) -> None:
    with pytest.raises(harness.Failed, match=r"status 3: out of luck$"):
        worker.ask({"name": "dies"}, 60)


def test_a_worker_that_hangs_is_left(harness: Any, worker: Any) -> None:
    with pytest.raises(harness.Failed, match="no result within 0 s"):
        worker.ask({"name": "hangs"}, 0.2)
    worker.close()
    assert worker.process.returncode is not None


def test_numbers(harness: Any) -> None:
    assert harness.median([3.0, 1.0, 2.0]) == 2.0
    assert harness.percentile(list(range(1, 101)), 0.95) == 95
    assert [harness.number(v) for v in (None, 123.4, 12.34, 1.234, 0.1234)] == [
        "–",
        "123",
        "12.3",
        "1.23",
        "0.123",
    ]
    calls: list[float] = []
    assert harness.repeated(lambda: calls.append(1.0) or 1.0, 0.02, least=5) == [1.0] * 20
    assert len(calls) == 23  # three that do not count


def test_the_same_bits_twice(harness: Any) -> None:
    torch = pytest.importorskip("torch")
    out = torch.zeros(4)

    def border() -> None:
        out[1:3] = 1.0  # what is not written stays NaN, in both runs

    counter = iter(range(9))
    seen, same = harness.run_twice(border, [out])
    assert same and seen[0][0].isnan() and seen[0][1] == 1
    assert not harness.run_twice(lambda: out.fill_(next(counter)), [out])[1]


def test_a_kernel_that_does_not_compile_is_reported(harness: Any, capsys: Any) -> None:
    pytest.importorskip("triton")
    compiled: list[int] = []

    class Kernel:
        def compile(self, constants: dict[str, int], capability: int) -> bytes:
            if constants["WARPS"] == 3:
                raise ValueError("no such tile")
            compiled.append(capability)
            return b""

    class Launch:
        def __init__(self, warps: int) -> None:
            self.kernel, self.constants = Kernel(), {"WARPS": warps}

    assert harness.compile_ahead([Launch(4), Launch(3), Launch(8)], 90) == {1: "ValueError: no such tile"}
    assert compiled == [90, 90] and "compiled 2 CUDA C++" in capsys.readouterr().out


def test_roofline_of_the_published_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    workloads = importlib.import_module("workloads")
    spec = workloads.NETWORKS["restormer"]
    found = workloads.roofline(spec, 1, 720, 1280, "NVIDIA H100 80GB HBM3")
    assert found["roofline_ms"] == found["compute_ms"] == pytest.approx(5.944, abs=1e-3)
    assert found["depthwise_ms"] == pytest.approx(0.284, abs=1e-3)
    small = workloads.roofline(spec, 1, 256, 256)
    assert small["compute_ms"] * workloads.TENSOR_CORES / 2e3 == pytest.approx(
        148e9, rel=0.01
    )  # multiply-adds
    assert workloads.workload_of("restormer-1080x1920") == ("restormer", 1080, 1920)
    with pytest.raises(ValueError, match="unknown workload 'swinir-64x64'"):
        workloads.workload_of("swinir-64x64")
