"""benchmarks/report.py: every table and chart of small made-up records; missing records."""

from __future__ import annotations

import importlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

GPU = "NVIDIA H100 80GB HBM3"
LIGHT, LARGE = ("elan-light-x4", 192, 320), ("restormer", 2160, 3840)
SMALL = ("restormer", 256, 256)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("report")


def record(
    place: tuple[str, int, int], backend: str, precision: str, ms: float, **more: Any
) -> dict[str, Any]:
    network, height, width = place
    return {
        "workload": f"{network}-{height}x{width}",
        "backend": backend,
        "precision": precision,
        "batch": 1,
        "height": height,
        "width": width,
        "variant": "",
        "median_ms": ms,
        "p95_ms": ms + 0.5,
        "peak_mib": 87.3,
        "roofline_ms": ms / 4,
        "share": 0.25,
        "device": GPU,
        "versions": {"torch": "2.13.0+cu130", "driver": "580.1"},
        "date": "2026-11-22T10:00:00+00:00",
        "command": "python benchmarks/bench_gpu.py",
        **more,
    }


def step(kernel: str, count: int, ms: float) -> dict[str, Any]:
    return {
        "kernel": kernel,
        "label": "encoder_level1.0.ffn",
        "count": count,
        "ms": ms,
        "total_ms": count * ms,
        "roofline_ms": count * ms / 5,
        "gb_per_s": 400.0,
        "tflops": 100.0,
    }


OPTIONAL = ("versions", "p95_ms", "roofline_ms", "share", "date", "peak_mib", "command")
ENGINE = {
    "build_s": 82.4,
    "engine_bytes": 13789052,
    "engine_layers": {"source": "engine", "float16": 53, "float32": 785},
    "layer_summary": "225 layers: other 61 %",
    "versions": {"tensorrt": "8.6.0"},
}
CALLS = {"create_ms": 80.0, "first_call_ms": 6000.0, "prepare_s": 7.0, "process_s": 21.0, "call_ms_host": 3.1}
RECORDS = [
    record(LIGHT, "fused", "fp16", 9.0, date="2026-11-21T10:00:00+00:00"),
    record(LIGHT, "fused", "fp16", 2.0, launches=51),
    record(LIGHT, "fused", "bf16", 2.1),
    record(LIGHT, "torch", "fp32", 20.0),
    record(LIGHT, "torch-compile", "fp16", 5.0, note="compiled whole: as written"),
    record(LIGHT, "onnxruntime-cuda", "fp16", 12.0, finite=False, versions={"onnxruntime-gpu": "1.31.1"}),
    record(LIGHT, "fused", "fp16", 2.0, variant="first process", **CALLS),
    record(SMALL, "fused", "fp16", 4.0),
    record(SMALL, "fused", "fp16", 25.0, batch=8),
    record(SMALL, "torch", "fp16", 80.0, batch=8),
    record(LARGE, "fused", "fp16", 500.0, peak_mib=None, p95_ms=None),
]
ENGINES = [
    record(LIGHT, "tensorrt", "fp16", 6.0, **ENGINE),
    record(
        LIGHT,
        "tensorrt",
        "fp16",
        15.0,
        variant="plain",
        **{**ENGINE, "engine_layers": {"source": "network", "float16": 1}},
    ),
]
FAILURES = [
    {
        "workload": workload,
        "precision": "fp16",
        "batch": 1,
        "variant": variant,
        "seconds": seconds,
        "error": error,
    }
    for workload, variant, seconds, error in (
        ("restormer-256x256", "", 21, "Myelin"),
        ("elan-x4-192x320", "dynamic", 58, "no result within 57 s"),
        ("elan-light-x4-192x320", "", 330, "of an earlier day"),
    )
]
LAYERS = {
    "elan-light-x4-192x320 x1 fp16 (plain)": [
        {"name": "/body/Conv_1 + /body/Relu_2", "ms": 2.0, "runs": 10},
        {"name": "Reshape_3 + Transpose_4", "ms": 6.0, "runs": 10},
    ],
    "elan-light-x4-192x320 x1 fp16": [
        {"name": "Reformatting CopyNode for Input Tensor 0 to body.0/conv_1", "ms": 1.0, "runs": 10},
        {"name": "{ForeignNode[body.0/conv_1...body.0/add_2]}", "ms": 3.0, "runs": 10},
    ],
}
KERNELS = [
    {
        "workload": "restormer-256x256",
        "precision": "fp16",
        "device": GPU,
        "whole_ms": 4.0,
        "sum_ms": 3.9,
        "steps": [step("gdfn_sm90", 2, 1.0), step("gdfn_sm90", 1, 1.0), step("_fold", 18, 0.05)],
    }
]
ACCURACY = {
    "models": [
        {
            "model": "elan-light-x4",
            "conditions": {
                "set5": {
                    "pictures": 5,
                    "fp16": {"relative_l2_max": 9e-4, "relative_l2_mean": 8e-4},
                    "bf16": {"relative_l2_max": 7e-3, "relative_l2_mean": 6e-3},
                    "psnr": {"fp32": 32.16, "fp16": 32.161, "bf16": 32.15},
                },
                "photographs": {
                    "pictures": 12,
                    "fp16": {"relative_l2_max": 5e-4, "relative_l2_mean": 4e-4},
                    "bf16": {"relative_l2_max": 3e-3, "relative_l2_mean": 2e-3},
                },
            },
        },
        {"model": "broken", "good": False, "error": "no such file"},
    ]
}
ERRORS = {"max": 2e-2, "mean": 1e-3, "median": 0.0}
TABLES = {
    "tables": [
        {
            "model": "ELAN-light x4",
            "dataset": "set5",
            "settings": {"pictures": 5},
            "rows": [
                {
                    "backend": "tensorrt",
                    "precision": "fp16",
                    "error": None,
                    "absolute": ERRORS,
                    "relative": ERRORS,
                    "relative_l2": 2e-3,
                    "psnr_on_set": 32.43,
                    "ssim_on_set": 0.8979,
                },
                {"backend": "tensorrt", "precision": "tf32", "error": "has not been run"},
            ],
        }
    ]
}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of a call with everything there is."""
    files = {
        "records": {"records": RECORDS},
        "kernels": {"records": KERNELS},
        "layers": LAYERS,
        "tensorrt": {"records": ENGINES, "failures": FAILURES},
        "accuracy": ACCURACY,
        "accuracy_tensorrt": TABLES,
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    named = [f"--{name}={tmp_path / name}.json" for name in ("records", "kernels", "layers", "tensorrt")]
    accuracy = ["--accuracy", *(str(tmp_path / f"{n}.json") for n in ("accuracy", "accuracy_tensorrt"))]
    return [*named, *accuracy, "--charts", str(tmp_path / "charts")]


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]


def check_tables(text: str) -> None:
    """Every row of a table has as many cells as its head."""
    width = 0
    for line in text.splitlines():
        if line[:1] != "|":
            width = 0
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line


def test_tables(script: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    script.main([*arguments, "--no-charts"])
    found, errors = capsys.readouterr()
    assert errors == ""
    check_tables(found)
    rows = {row[0]: row for row in rows_of(found)}
    assert rows["fused fp16, 1"][1:] == ["4.00", "250", "87.3"]
    assert rows["fused fp16, 8"][1:3] == ["25.0", "320"]
    assert rows["fused fp16, 32"][1:] == ["–"] * 3
    assert rows["PyTorch 2.13 fp32"][1:] == ["–", "20.0 (10.0x)", "–", "–", "–"]
    assert rows["ONNX Runtime 1.31 CUDA fp16"][2] == r"12.0 (6.00x) \*"
    assert rows["TensorRT 8.6 fp16"][2] == "6.00 (3.00x)"
    assert rows["Restormer, 2160 x 3840"][1:] == ["500", "2.00", "125", "25.0 %", "–"]
    assert rows["ELAN-light x4, 192 x 320, first process"][1:] == ["0.080", "6.00", "7.00", "21.0", "3.10"]
    assert rows["ELAN-light x4, 192 x 320, second process"][1:] == ["–"] * 5
    assert rows["`gdfn_sm90`"][1:4] == ["3", "3.00", "76.9 %"]
    assert rows["`gdfn_sm90`"][6:] == ["400", "100.0"]
    assert rows["elan-light-x4-192x320 x1 fp16"][1:7] == ["82.4", "6.00", "6.50", "13.8", "2", "53 / 838"]
    assert rows["elan-light-x4-192x320 x1 fp16 (plain)"][6] == "–"  # what its network said
    assert rows["restormer-256x256 x1 fp16"][1] == "failed after 21 s"
    assert rows["elan-x4-192x320 x1 fp16 (dynamic)"][1] == "none within 58 s"
    assert rows["Conv"][1:] == ["2.00", "25.0 %", "1", "–", "–", "0"]
    assert rows["Myelin"][4:] == ["3.00", "75.0 %", "1"]
    assert rows["broken"][1] == "no such file"
    assert rows["tensorrt fp16"][1:4] == ["2.0e-02", "1.0e-03", "0"]
    fused = next(row for row in rows_of(found) if row[0] == "fused fp16" and len(row) == 6)
    assert fused == ["fused fp16", "–", "**2.00**", "–", "–", "**4.00**"]  # the later of two records
    floor = next(row for row in rows_of(found) if row[0] == "ELAN-light x4, 192 x 320" and row[-1] == "51")
    assert floor[1:] == ["2.00", "2.50", "0.500", "25.0 %", "87.3", "51"]
    assert "torch.compile: ELAN-light x4 as a whole." in found


def test_charts(script: Any, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "charts"
    script.main(arguments)
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(drawn) == ["batches.svg", "kernels.svg", "speed.svg", "tensorrt_layers.svg"]
    texts = {
        name: " ".join(
            t.text or "" for t in ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}text")
        )
        for name, data in drawn.items()
    }
    assert "20.0 (10.0x)" in texts["speed.svg"] and "–" in texts["speed.svg"]
    assert "12.0 (6.00x) NaN" in texts["speed.svg"]
    assert "320" in texts["batches.svg"]
    assert "gdfn_sm90" in texts["kernels.svg"] and "77" in texts["kernels.svg"]
    assert "8.0 ms, n = 2" in texts["tensorrt_layers.svg"]
    script.main(arguments)
    assert all((folder / name).read_bytes() == data for name, data in drawn.items())


def test_nothing_there(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    named = [f"--{name}={tmp_path}/{name}.json" for name in ("records", "kernels", "layers", "tensorrt")]
    script.main([*named, "--accuracy", "--charts", str(tmp_path / "charts")])
    found, errors = capsys.readouterr()
    assert "|" not in found and errors.count("is not there") == 4 and errors.count("left out: table") == 8
    assert not (tmp_path / "charts").exists()


@pytest.mark.parametrize("kept", range(len(RECORDS)))
def test_one_record_alone(
    script: Any, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    """Tables without what they compare with."""
    least = {k: v for k, v in RECORDS[kept].items() if k not in OPTIONAL and v not in ("", 1)}
    (tmp_path / "records.json").write_text(json.dumps({"records": [least]}), "utf-8")
    for name in ("kernels", "layers", "tensorrt"):
        (tmp_path / f"{name}.json").unlink()
    script.main([*arguments, "--no-charts"])
    check_tables(capsys.readouterr().out)


def test_charts_of_one_record(script: Any, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "records.json").write_text(json.dumps({"records": RECORDS[3:4]}), "utf-8")
    (tmp_path / "tensorrt.json").unlink()
    script.main(arguments)
    assert (tmp_path / "charts" / "speed.svg").is_file()


def test_other_gpus_are_left_out(
    script: Any, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [{**r, "device": "NVIDIA H200", "median_ms": 77.0} for r in ENGINES]
    (tmp_path / "tensorrt.json").write_text(json.dumps({"records": other, "failures": []}), "utf-8")
    script.main([*arguments, "--no-charts"])
    found, errors = capsys.readouterr()
    assert "77.0" not in found and "Myelin" not in found and "left out: 2 records of NVIDIA H200" in errors
    script.main([*arguments, "--no-charts", "--device", "H200", "--only", "1,7"])
    found = capsys.readouterr().out
    assert "77.0" in found and "Myelin" in found and "### 2." not in found


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("Reformatting CopyNode for Input Tensor 0 to {ForeignNode[conv_1]}", "Reformat"),
        ("{ForeignNode[body.0.1/transpose_112...body.0.1/conv_126]}", "Myelin"),
        ("body.0.0/conv_13 + body.0.0/relu_14", "Conv"),
        ("w_782273201fa0035a + add_9", "Elementwise, Cast"),
        ("PWN(PWN(/body/Sigmoid), /body/Mul)", "Elementwise, Cast"),
        ("depthtospace_4", "Reshape, Transpose"),
        ("/softmax/MatMul_3", "MatMul"),
        ("mystery", "..."),
    ],
)
def test_kinds_of_layers(script: Any, layer: str, kind: str) -> None:
    recorded = importlib.import_module("reporting.recorded")
    assert recorded.KINDS[recorded.kind_of(layer)][0] == kind


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("Reformatting CopyNode for Input Tensor 0 to {ForeignNode[conv_1]}", "reformat"),
        ("{ForeignNode[body.0.1/transpose_112...body.0.1/conv_126]}", "myelin"),
        ("body.0.0/conv_13 + body.0.0/relu_14", "conv"),
        ("mystery", "other"),
    ],
)
def test_kinds_in_the_summary_of_an_engine(script: Any, layer: str, kind: str) -> None:
    summary = importlib.import_module("bench_tensorrt").by_kind([{"name": layer, "ms": 2.0}])
    assert summary == f"1 layers: {kind} 100 %"


def test_an_engine_with_nothing_before_it(
    script: Any, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {case: layers for case, layers in LAYERS.items() if "plain" not in case}
    (tmp_path / "layers.json").write_text(json.dumps(alone), "utf-8")
    script.main([*arguments, "--no-charts", "--only", "7"])
    found = capsys.readouterr().out
    assert "restort export, ms" in found and "torch.onnx.export" not in found


def test_published_weights_have_a_name_of_their_own(
    script: Any, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (digest,) = importlib.import_module("reporting.tables").PUBLISHED
    (shipped, _) = ACCURACY["models"]
    models = [{**shipped, "weights_sha256": digest}, {**shipped, "weights_sha256": "of the shipped file"}]
    (tmp_path / "accuracy.json").write_text(json.dumps({"models": models}), "utf-8")
    script.main([*arguments, "--no-charts", "--only", "8"])
    names = [row[0] for row in rows_of(capsys.readouterr().out) if row[1] in ("set5", "photographs")]
    assert names == ["elan-light-x4 (published weights)"] * 2 + ["elan-light-x4"] * 2
