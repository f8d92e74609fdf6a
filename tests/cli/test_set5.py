"""The whole way, files to files: the published ELAN-light x4 meets its figure on Set5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restort.cli.main import main
from restort.evaluation.metrics import psnr_y
from restort.imaging.decode import read

PUBLISHED = 32.438  # dB: PSNR on Y of 8-bit results, 4 pixels cropped, by the original code


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_set5(
    shared: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    pytest.importorskip(backend)
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    folder = shared / "data" / "test" / "set5"
    weights = shared / "weights" / "elan_light_x4_friedricelab.safetensors"
    arguments = [
        "upscale",
        str(folder / "LR_bicubic" / "X4"),
        "-o",
        str(tmp_path / "out"),
        "--weights",
        str(weights),
    ]
    status = main([*arguments, "--backend", backend, "--precision", "fp32", "--json", "--quiet"])
    report = json.loads(capfd.readouterr().out)
    assert status == 0, report
    assert report["backend"] == backend and report["precision"] == "fp32"
    assert report["totals"]["done"] == 5
    scores = []
    for item in report["files"]:
        truth = read(folder / "HR" / Path(item["source"]).name.replace("x4", "")).pixels
        height, width = (size // 4 * 4 for size in truth.shape[:2])
        scores.append(psnr_y(read(item["target"]).pixels, truth[:height, :width], border=4))
    assert sum(scores) / 5 == pytest.approx(PUBLISHED, abs=0.01)
