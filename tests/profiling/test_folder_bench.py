"""`restort bench --folder`: complete records of the pipeline and of the plain loop. No speed is asserted."""

from __future__ import annotations

import json
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.cli.main import main
from restort.errors import RestortError
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference import model as model_module
from restort.profiling import folder_bench, plots
from restort.profiling.folder_bench import EAGER, eager_loop, measure, table
from restort.utils.cpu import processor_name
from tests.fakes.fake_backend import ELAN, FakeRunner, create, write_weights

COUNT = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(COUNT):
        values = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        write(tmp_path / f"pictures/{i}.png", Picture(values))
    return tmp_path / "pictures"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "x2.safetensors", replace(ELAN[2], channels=30))


def test_a_record_tells_where_the_time_went(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restort.backends.registry.create", create, raising=False)

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return write(*arguments, **options)

    monkeypatch.setattr(model_module, "write", slowly)
    with restort.load(weights) as model:
        record = measure(model, folder, suffix=".jpg")
    assert (record["files"], record["done"], record["failed"], record["error"]) == (COUNT, COUNT, 0, None)
    assert record["megapixels"] == pytest.approx(COUNT * 40 * 60 / 1e6, abs=1e-4)
    assert record["megapixels_per_second"] == pytest.approx(
        record["megapixels"] / record["seconds"], rel=2e-2
    )
    assert record["stage_seconds"]["encode"] >= 0.1 * COUNT
    assert 0 < sum(record["shares"].values()) <= 1.001
    assert all(0 <= share <= 1.001 for share in record["busy"].values())
    assert record["input_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert record["output_bytes"] > 0
    assert record["device_busy"] is None, "a processor has no clock of its own"
    assert record["device"] == processor_name()
    assert {"device", "machine", "versions", "command", "date", "weights_sha256"} <= record.keys()
    assert record["workload"] == "x2 pictures to jpg"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pictures", "x2.safetensors"]


def test_a_device_has_a_clock(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restort.backends.registry.create", create, raising=False)
    seen: list[tuple[int, ...]] = []

    def timer(self: FakeRunner, x: np.ndarray) -> Callable[[], float]:
        seen.append(x.shape)
        return lambda: 2.0

    monkeypatch.setattr(FakeRunner, "timer", timer)
    monkeypatch.setattr(FakeRunner, "device", property(lambda self: "NVIDIA X"))
    with restort.load(weights, tile=None) as model:
        record = measure(model, folder)
    assert seen == [(1, 3, 32, 32)], "once for all pictures of a size, padded"
    assert record["device_seconds"] == pytest.approx(COUNT * 0.002)
    assert record["device"] == "NVIDIA X"
    assert record["device_busy"] == pytest.approx(COUNT * 0.002 / record["seconds"], abs=1e-3)


def test_the_command_measures_the_pipeline_and_the_plain_loop(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    made = tmp_path / "folder.json", tmp_path / "folder.svg"
    status = main(
        [
            *[
                "bench",
                "--weights",
                str(weights),
                "--folder",
                str(folder),
                "--backend",
                "torch:fp32",
                "--quiet",
            ],
            *["--format", "jpg", "--name", "tiny", "-o", str(made[0]), "--plot", str(made[1])],
        ]
    )
    assert status == 0
    mine, peer = json.loads(made[0].read_text())["records"]
    assert (mine["backend"], mine["precision"], mine["done"]) == ("torch", "fp32", COUNT)
    assert (peer["backend"], peer["error"], peer["done"]) == (EAGER, None, COUNT)
    assert mine["workload"] == peer["workload"] == "tiny pictures"
    assert mine["megapixels"] == peer["megapixels"] and peer["output_bytes"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith(EAGER)
    assert ElementTree.parse(made[1]).getroot().tag.endswith("svg")


def test_the_plain_loop_computes_the_same_pictures(weights: Path, tmp_path: Path) -> None:
    """Of sizes that need no padding: the loop pads otherwise, and ELAN's cyclic shift carries that everywhere."""
    pytest.importorskip("torch")
    from restort.profiling.eager_loop import run

    files = []
    for i in range(2):
        values = np.random.default_rng(i).integers(0, 256, (16, 32, 3), dtype=np.uint8)
        write(tmp_path / f"{i}.png", Picture(values))
        files.append([str(tmp_path / f"{i}.png"), str(tmp_path / f"eager/{i}.png")])
    answer = run({"weights": str(weights), "files": files, "quality": 95, "seconds": 60})
    assert answer["files"] == len(files)
    with restort.load(weights, backend="torch", precision="fp32") as model:
        for source, target in files:
            ours, theirs = model(read(source).pixels), read(target).pixels
            assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_loop_that_fails_is_recorded(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restort.backends.registry.create", create, raising=False)
    monkeypatch.setattr(folder_bench, "_child", lambda task, limit: {"error": "CUDA out of memory"})
    with restort.load(weights) as model:
        peer = eager_loop(model, folder)
    assert peer is not None and peer["error"] == "CUDA out of memory"
    assert peer["megapixels_per_second"] is None and peer["done"] == 0
    assert "CUDA out of memory" in table([peer]).splitlines()[1]
    with pytest.raises(RestortError, match="nothing to plot"):
        plots.folders([peer])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--folder", "{}", "--size", "16x16"], "--size has no meaning"),
        (["--folder", "{}", "--backend", "torch,openvino"], "one backend"),
        (["--format", "jpg"], "--format is for a folder"),
        (["--folder", "{}/none"], "none"),
    ],
)
def test_wrong_options_get_one_sentence(
    folder: Path, weights: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{}", str(folder)) for argument in arguments]
    assert main(["bench", "--weights", str(weights), "--quiet", *given]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_error_of_the_loop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Traceback ...\ntorch.AcceleratorError: CUDA error: invalid argument\nCompile with `TORCH_USE_CUDA_DSA` ..."

    def fails(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(folder_bench.subprocess, "run", fails)
    assert folder_bench._child({}, 1.0) == {"error": "torch.AcceleratorError: CUDA error: invalid argument"}
