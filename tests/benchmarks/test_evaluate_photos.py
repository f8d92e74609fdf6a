"""benchmarks/evaluate_photos.py: its inputs are files made as it says, and its table tells gains and harm."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restort.evaluation.resize import imresize
from tests.fakes.fake_backend import ELAN, RESTORMER, create, write_weights

pytest.importorskip("scipy")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr("restort.backends.registry.create", create)
    monkeypatch.setattr("restort.backends.registry.check", lambda *options: None)
    return importlib.import_module("evaluate_photos")


def part(name: str) -> Any:
    """A module of benchmarks/photos; the fixture `script` puts its folder on the path."""
    return importlib.import_module(f"photos.{name}")


def photo(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(30, 226, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(imresize(coarse, 8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Test sets of the layouts that the script reads, with few and small pictures."""
    root = tmp_path / "data"
    for folder, count in (("kodak24", 24), ("set14/HR", 2)):
        (root / folder).mkdir(parents=True)
        for i in range(1, count + 1):
            name = f"kodim{i:02}.png" if folder == "kodak24" else f"img_{i:03}.png"
            Image.fromarray(photo(i)).save(root / folder / name)
    (root / "polyu_real_noise").mkdir()
    for kind, number in (("real", 1), ("mean", 2)):
        Image.fromarray(photo(number)).save(root / f"polyu_real_noise/a_{kind}.JPG", quality=95)
    return root


def run(script: Any, tmp_path: Path, data: Path, task: str, weights: Path, *more: str) -> dict[str, Any]:
    record = tmp_path / "record.json"
    words = [task, "--weights", str(weights), "--data", str(data), "--work", str(tmp_path / "work")]
    script.main([*words, "--backend", "auto", "-o", str(record), *more])
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def test_inputs_are_files_of_the_kind_they_claim(script: Any, data: Path, tmp_path: Path) -> None:
    bench = part("sets").Bench(data, tmp_path / "work", whole=False)
    first = bench.samples("denoise", "s15-jpeg95")[0]
    clean = photo(1)
    noise = np.random.Generator(np.random.PCG64([0, 0])).standard_normal(clean.shape)
    noisy = np.clip(np.rint(clean + 15 * noise), 0, 255).astype(np.uint8)
    expected = io.BytesIO()
    Image.fromarray(noisy).save(expected, "JPEG", quality=95, subsampling="4:2:0")
    assert first.source.read_bytes() == expected.getvalue()
    assert np.array_equal(part("files").read(first.truth), clean)
    moved = bench.samples("denoise", "double-jpeg")[0]
    assert np.array_equal(part("files").read(moved.truth), clean[3:, 5:])
    assert part("files").read(moved.source).shape == (61, 91, 3)
    [pair] = bench.samples("denoise", "polyu")
    assert pair.source.suffix == ".png"
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("inputs*/**/*.*")}
    bench.samples("denoise", "s15-jpeg95")
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("inputs*/**/*.*")}


def test_simulated_noise_is_as_strong_and_coarse_as_it_says(script: Any) -> None:
    flat = np.full((256, 256, 3), 128, np.uint8)
    noise = part("degradations").coarse_noise(flat, 8, 0).astype(float) - 128
    luma = noise @ part("degradations").YCC[0]
    assert luma.std() == pytest.approx(8, rel=0.1)
    for lag, expected in ((1, 0.8), (2, 0.5), (4, 0.26)):
        correlation = (luma[:, :-lag] * luma[:, lag:]).mean() / luma.var()
        assert correlation == pytest.approx(expected, abs=0.08)
    made = part("degradations").camera(flat, 0)
    assert 2 < (made.image.astype(float) - made.clean).std() < 12
    assert np.abs(made.clean.astype(int) - 128).max() <= 1
    kernel = part("degradations").disc(2.5)
    assert (
        kernel.sum() == pytest.approx(1) and kernel[3, 3] == kernel.max() > kernel[3, 1] > 0 == kernel[3, 0]
    )


def test_the_table_tells_gain_worst_picture_and_harm(
    script: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fake backend inverts pictures: every set loses."""
    weights = write_weights(tmp_path / "x1.safetensors", RESTORMER, metadata={"task": "denoise"})
    sets = ("--sets", "polyu", "clean", "text", "--against", "none")
    sheets = ("--contact-sheets", str(tmp_path / "sheets"))
    found = run(script, tmp_path, data, "denoise", weights, *sets, *sheets)
    polyu, clean, text = found["sets"]
    source, truth = (photo(1), photo(2))
    assert polyu["pictures"] == 1 and polyu["gain"] == polyu["worst"] < 0
    assert polyu["needs"] == {"gain >= 2.6": False, "worst >= -0.1": False}
    assert part("scores").psnr(source, truth) == pytest.approx(polyu["input"], abs=0.5)  # but for JPEG 95
    assert (
        clean["input"] == part("scores").EXACT
        and clean["gain"] is None
        and clean["needs"] == {"output >= 55": False}
    )
    inverse = part("scores").psnr(255 - photo(1), photo(1))
    assert clean["rows"][0]["output"] == pytest.approx(inverse, abs=1e-6)
    assert text["rows"][0]["output_colour"] < 1e-9 and text["rows"][1]["output_colour"] is None
    assert found["command"][2] == "x1.safetensors" and str(tmp_path) not in json.dumps(found["command"])
    assert "gain >= 2.6 NO" in capsys.readouterr().out
    with Image.open(tmp_path / "sheets/denoise-polyu.png") as sheet:
        assert sheet.size == (3 * 260, 276)


def test_small_pictures_are_measured_on_luma_against_bicubic(script: Any, data: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "x2.safetensors", ELAN[2])
    found = run(script, tmp_path, data, "upscale", weights, "--sets", "set14", "--against", str(weights))
    [row] = found["sets"]
    low = imresize(photo(1), 0.5)
    bicubic, repeated = imresize(low, 2), low.repeat(2, axis=0).repeat(2, axis=1)
    for key, image in (("input", bicubic), ("output", repeated)):
        a, b = (x[2:-2, 2:-2] @ np.array([65.481, 128.553, 24.966]) / 255 for x in (image, photo(1)))
        assert row["rows"][0][key] == pytest.approx(20 * np.log10(255 / np.sqrt(np.mean((a - b) ** 2))))
    assert row["against"] is None  # the reference is the model itself


def test_wrong_sets_and_models_end_with_one_sentence(script: Any, data: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "x2.safetensors", ELAN[2])
    for task, more, message in (
        ("upscale", ("--sets", "set15"), "unknown sets: set15"),
        ("denoise", (), "enlarges 2 times"),
        ("upscale", ("--sets", "set5", "--against", "none"), "no pictures for set5"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(script, tmp_path, data, task, weights, *more)
