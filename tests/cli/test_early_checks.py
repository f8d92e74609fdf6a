"""What the command line refuses at a first look: told before a model is fetched, loaded or timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.cli.main import main
from restort.imaging.encode import write
from restort.imaging.folder import collect
from restort.imaging.picture import Picture
from restort.inference.batch import Options
from restort.inference.preflight import preflight
from tests.fakes.fake_backend import ELAN, create, write_weights

FETCHED = ["--model", "restormer-motion-deblurring"]  # neither shipped nor in the cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with good and bad inputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    for name in ("good.png", "taken.png", "pictures/a.png"):
        write(name, Picture(np.zeros((12, 16, 3), np.uint8)))
    for name in ("text.png", "texts/a.png", "texts/b.png", "empty/notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("dear diary")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would open a model fails the test."""
    for place in (
        "restort.weights.download.path_of",
        "restort.weights.checkpoint.load_weights",
        "restort.backends.registry.create",
        "restort.backends.autotune.choose",
    ):
        monkeypatch.setattr(place, lambda *_, place=place, **__: pytest.fail(f"{place} was called"))


@pytest.mark.parametrize("command", [["upscale"], ["denoise"], ["deblur"], ["run", *FETCHED]])
@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["gone.png", "-o", "out.png"], 1, "cannot read gone.png: there is no such file; check the path"),
        (["gone/a.png", "-o", "out.png"], 1, "there is no folder gone; check the path"),
        (["text.png", "-o", "out.png"], 1, "text.png: it is not a picture in a known format"),
        (["good.png", "-o", "taken.png"], 1, "taken.png already exists; use --overwrite"),
        (["empty", "-o", "out"], 2, "there is no picture in empty"),
        (["good.png", "-o", "good.png"], 2, "would overwrite the input good.png"),
        (["good.png", "pictures", "-o", "out.png"], 2, "give the name of a folder"),
        (
            ["good.png", "-o", "o.png", "--backend", "onnxruntime", "--precision", "bf16"],
            2,
            "does not support bf16",
        ),
        (
            ["good.png", "-o", "o.png", "--tile", "exact", "--overlap", "8"],
            2,
            "leave --overlap out",
        ),
        (
            ["good.png", "-o", "o.png", "--tile", "exact", "--backend", "openvino"],
            2,
            "does not support --tile exact",
        ),
    ],
)
def test_one_sentence_and_no_model(
    no_model: None,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    arguments: list[str],
    status: int,
    expected: str,
) -> None:
    before = sorted(Path().rglob("*"))
    assert main([*command, *arguments, "--quiet"]) == status
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and expected in told.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["evaluate", "--dataset", "gone"], 1, "there is no folder gone; give the folder of a test set"),
        (["evaluate", "--dataset", "pictures", "--backend", "abacus"], 2, "abacus"),
        (["compare", "gone.png", *(sides := ["--backend", "torch", "--against", "openvino"])], 1, "gone.png"),
        (["compare", "text.png", *sides], 1, "it is not a picture in a known format"),
        (["compare", "empty", *sides], 1, "there are no pictures in empty"),
    ],
)
def test_measuring_looks_first_as_well(
    no_model: None, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, expected: str
) -> None:
    assert main([*arguments, *FETCHED, "--quiet"]) == status
    told = capsys.readouterr()
    assert told.out == "" and expected in told.err


def test_a_folder_of_bad_pictures(no_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", "texts", "gone.png", "-o", "out", "--json"]) == 1
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["model"] is report["backend"] is report["precision"] is None
    assert [item["status"] for item in report["files"]] == ["failed"] * 3 and report["totals"]["failed"] == 3
    assert "0 done, 3 failed of 3" in told.err and not Path("out").exists()


def test_a_backend_without_its_gpu_is_told_before_the_download(
    no_model: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from restort.utils.gpu import Unavailable

    monkeypatch.setattr("restort.backends.registry.installed", lambda name: True)
    monkeypatch.setattr(
        "restort.backends.registry.check_available", lambda name: Unavailable("no GPU", "use another")
    )
    assert main(["deblur", "good.png", "-o", "out.png", *FETCHED, "--backend", "fused"]) == 1
    assert "cannot use backend 'fused': no GPU; use another" in capsys.readouterr().err
    with pytest.raises(restort.RestortError, match="no GPU"):
        restort.load("restormer-motion-deblurring", backend="fused")


def test_a_bad_input_is_told_first_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told_before: list[str] = []

    def opened(*arguments: Any, **named: Any) -> Any:
        told_before.append(capsys.readouterr().err)
        return create(*arguments, **named)

    monkeypatch.setattr("restort.backends.registry.create", opened)
    weights = str(write_weights(Path("x2.safetensors"), ELAN[2]))
    inputs = ["good.png", "gone.png", "pictures"]
    assert main(["upscale", *inputs, "-o", "out", "--weights", weights, "--json"]) == 1
    assert len(told_before) == 1 and "gone.png: there is no such file" in told_before[0]
    told = capsys.readouterr()
    report = json.loads(told.out)
    totals = report["totals"]
    assert (totals["files"], totals["done"], totals["failed"]) == (3, 2, 1) and report["model"]["scale"] == 2
    assert "[2/2]" in told.err and "gone.png" not in told.err


def test_of_a_folder_no_more_is_opened_than_it_takes() -> None:
    write("mixed/b.png", Picture(np.zeros((4, 4, 3), np.uint8)))
    for name in ("mixed/a.png", "mixed/c.png"):
        Path(name).write_text("dear diary")
    jobs = collect(["mixed"], "out")
    sound, refused = preflight(jobs, Options(), named=[Path("mixed")], alone=False)
    assert [job.source.name for job in sound] == ["b.png", "c.png"]
    assert [result.source.name for result in refused] == ["a.png"]
    sound, refused = preflight(jobs, Options(), named=[Path("mixed/c.png")], alone=False)
    assert [result.source.name for result in refused] == ["a.png", "c.png"]
