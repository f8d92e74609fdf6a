"""`restort build` and `restort inspect`, with real engines of small networks by TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from restort.backends.tensorrt import mixed_precision
from restort.weights.checkpoint import load_weights
from tests.export.test_graphs import elan
from tests.fakes.fake_backend import RESTORMER, write_weights
from tests.fakes.fake_driver import use_gpu

pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

FAST = ("--shape", "1x64x64", "--compute-capability", "8.6", "--level", "0")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    use_gpu(monkeypatch, lambda: None)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "small.safetensors", elan(blocks=2, channels=12))


def test_an_engine_is_built_and_described(weights: Path, restort: Any) -> None:
    told = restort("build", "--weights", weights, *FAST)
    assert told.status == 0 and told.out == "", told.err
    assert "building small, fp16, 1x64x64, with TensorRT-RTX" in told.lines[0] and "8.6" in told.lines[0]
    assert "small -> small-fp16.rtx.engine: " in told.lines[-1] and "float16" in told.lines[-1]
    engine = Path("small-fp16.rtx.engine")
    assert sorted(p.name for p in Path().glob("*.engine*")) == [engine.name, f"{engine.name}.json"]
    listed = restort("cache", "list").out  # where --backend tensorrt finds it
    assert "small" in listed and "compute capability 8.6" in listed
    told = restort("inspect", engine)
    assert told.status == 0 and told.err == ""
    for words in (
        "elan, x2",
        "compute capability 8.6",
        "fp16; TF32 on",
        "opt 1x64x64",
        "float32 N x 3 x H x W",
    ):
        assert words in told.out
    assert "does not run: no NVIDIA GPU found" in told.out
    about = json.loads(restort("inspect", engine, "--json").out)
    assert about["targets"] == ["8.6"] and about["model"]["scale"] == 2 and about["problem"] is None
    told = restort("build", "--weights", weights, *FAST)
    assert told.status == 1 and "--overwrite" in told.err
    told = restort("build", "--weights", weights, *FAST, "--overwrite", "--json", "--quiet")
    summary = json.loads(told.out)
    assert told.status == 0 and told.err == "" and summary["target"] == engine.name and summary["bytes"] > 0
    engine.write_bytes(b"cut short")
    told = restort("inspect", engine)
    assert told.status == 1 and "problem:" in told.out and "bytes instead of" in told.out


def test_version_compatible_engines_are_of_tensorrt(weights: Path, restort: Any) -> None:
    told = restort("build", "--weights", weights, *FAST, "--version-compatible")
    assert (
        told.status == 2
        and "--version-compatible is only for TensorRT; leave it out, or use --fl" in told.err
    )


def test_a_graph_keeps_its_precision(weights: Path, restort: Any) -> None:
    for precision in ("fp16", "fp32"):
        restort("export", "--weights", weights, "-o", f"{precision}.onnx", "--precision", precision)
        told = restort("build", "--onnx", f"{precision}.onnx", *FAST)
        assert told.status == 0 and Path(f"{precision}-{precision}.rtx.engine").exists(), told.err
    told = restort("build", "--onnx", "fp32.onnx", "--precision", "fp16", "-o", "never.engine", *FAST)
    assert told.status == 1 and len(told.lines) == 2 and "precision fp16 requested, but" in told.err
    assert not Path("never.engine").exists()
    told = restort("build", "--onnx", "fp32.onnx", "--precision", "tf32", "--compute-capability", "8.0")
    assert told.status == 0 and "1x16x16..1x384x640..1x1280x1280" in told.err


def test_mixed_precision_keeps_what_is_asked_for(
    weights: Path, restort: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = restort("build", "--weights", weights, "--precision", "mixed", "--keep-fp32", "body.*,tail", *FAST)
    assert told.status == 0, told.err
    told = restort("inspect", "small-mixed.rtx.engine")
    assert "sections in float32: body.0" in told.out and "tail; TF32 off" in told.out
    told = restort("build", "--weights", weights, "--precision", "mixed", "--keep-fp32", "body.77", *FAST)
    assert told.status == 2 and "unknown section 'body.77'; choose from head, body.0" in told.err
    loaded = load_weights(weights)
    mixed_precision.remember(
        loaded,
        {"weights_sha256": loaded.digest, "keep_fp32": ["head"], "budget": {"relative_l2": 0.001}},
    )
    told = restort("build", "--weights", weights, "--precision", "mixed", "--overwrite", *FAST)
    assert (
        told.status == 0 and "1 sections in float32: head" in restort("inspect", "small-mixed.rtx.engine").out
    )
    asked = []

    class Search:
        def __init__(self, *about: Any) -> None:
            pass

        def choose(self, budget: Any, notify: Any) -> Any:
            asked.append(budget.relative_l2)
            record = {"weights_sha256": loaded.digest, "keep_fp32": ["tail"], "budget": {"relative_l2": 0.5}}
            return SimpleNamespace(keep_fp32=("tail",), to_json=lambda: record, summary=lambda: "found it")

    monkeypatch.setattr("restort.profiling.sensitivity.Search", Search)
    monkeypatch.setattr(
        "restort.profiling.sensitivity_files.keep",
        lambda w, c: [mixed_precision.remember(w, c.to_json())] * 2,
    )
    for _ in range(2):  # the second time it is remembered
        told = restort(
            "build", "--weights", weights, "--precision", "mixed", "--budget", "0.5", "--overwrite", *FAST
        )
        assert told.status == 0 and asked == [0.5], told.err
    assert "sections in float32: tail" in restort("inspect", "small-mixed.rtx.engine").out


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ([], 2, "one of the arguments --model --weights --onnx is required"),
        (["--weights", "W"], 2, "no NVIDIA GPU"),
        (["--weights", "W", "--shape", "8x8"], 2, "argument --shape"),
        (["--weights", "W", "--shape", "1x8x8,1x8x8"], 2, "argument --shape"),
        (["--weights", "W", "--shape", "1x60x64", "--compute-capability", "8.6"], 2, "multiples of 16"),
        (["--weights", "W", "--compute-capability", "ada"], 2, "argument --compute-capability"),
        (["--weights", "W", "--compute-capability", "9.0"], 2, "does not build for compute capability 9.0"),
        (["--weights", "W", "--compute-capability", "8.6", "--level", "9"], 2, "from 0 to 5"),
        (["--weights", "W", "--budget", "2", "--precision", "mixed"], 2, "argument --budget"),
        (
            ["--weights", "W", "--budget", "0.01", "--compute-capability", "8.6"],
            2,
            "only for --precision mixed",
        ),
        (["--weights", "W", "--flavour", "tensorrt"], 1, "TensorRT is not installed"),
        (["--weights", "none.pth", "--compute-capability", "8.6"], 1, "none.pth"),
        (["--onnx", "none.onnx", "--compute-capability", "8.6"], 1, "none.onnx"),
        (["--onnx", "W", "--compute-capability", "8.6"], 1, "as ONNX"),
        (["--onnx", "W", "--keep-fp32", "x", "--compute-capability", "8.6"], 2, "instead of --onnx"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str],
    status: int,
    expected: str,
    weights: Path,
    restort: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("restort.backends.tensorrt.library.installed", lambda: {"rtx": "1.7"})
    told = restort("build", *[str(weights) if a == "W" else a for a in arguments])
    assert told.status == status and expected in told.err, told.err
    assert (
        len([line for line in told.lines if not line.startswith("restort: building")]) == 1 and told.out == ""
    )


def test_an_engine_without_a_sidecar(restort: Any) -> None:
    told = restort("inspect", "none.engine")
    assert told.status == 1 and "no engine: none.engine" in told.err
    Path("bare.engine").write_bytes(b"engine")
    told = restort("inspect", "bare.engine")
    assert told.status == 1 and "bare.engine.json" in told.err and len(told.lines) == 1


def test_external_weights_travel_along(weights: Path, restort: Any) -> None:
    restort("export", "--weights", weights, "-o", "whole.onnx")
    onnx.save(onnx.load("whole.onnx"), "split.onnx", save_as_external_data=True, location="split.bin")
    told = restort("build", "--onnx", "split.onnx", *FAST)
    assert told.status == 0 and Path("split-fp32.rtx.engine").exists(), told.err
    Path("split.bin").unlink()
    told = restort("build", "--onnx", "split.onnx", "--overwrite", *FAST)
    assert told.status == 1 and len(told.lines) == 1 and "split.onnx" in told.err


def test_restormers_too(tmp_path: Path, restort: Any) -> None:
    path = write_weights(tmp_path / "r.safetensors", RESTORMER)
    told = restort("build", "--weights", path, "--precision", "bf16", *FAST)
    assert told.status == 0, told.err
    about = json.loads(restort("inspect", "r-bf16.rtx.engine", "--json").out)
    assert about["layers"]["bfloat16"] and about["profile"]["max"] == [1, 64, 64]
