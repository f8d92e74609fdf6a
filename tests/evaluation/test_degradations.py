"""Noise and JPEG of test sets: strengths that are known beforehand, and files of Pillow."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restort.errors import RestortError, UsageError
from restort.evaluation.datasets import open_dataset
from restort.evaluation.degradations import Jpeg, PoissonGaussNoise, WhiteNoise
from restort.evaluation.scoring import evaluate
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.fakes.fake_backend import RESTORMER, create, write_weights


def picture(number: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth colours: JPEG keeps them nearly, and noise of any strength stays inside 0..255."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 30 * np.sin((x * (c + 1) + y * number) / 17) for c in range(3)]
    return np.rint(np.stack(planes, 2)).astype(np.uint8)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    (tmp_path / "clean").mkdir()
    for number in (1, 2):
        write(tmp_path / f"clean/p{number}.png", Picture(picture(number)))
    return tmp_path / "clean"


def unchanged(image: np.ndarray) -> np.ndarray:
    return image


def by_pillow(image: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(io.BytesIO(data.getvalue())))


@pytest.mark.parametrize(("text", "chroma"), [("40", "4:2:0"), ("40:4:2:0", "4:2:0"), ("40:4:4:4", "4:4:4")])
def test_jpeg_is_pillows(text: str, chroma: str) -> None:
    noisy = picture(1) + np.random.default_rng(0).normal(0, 20, (40, 56, 3))
    setting = Jpeg.parse(text)
    assert str(setting) == f"jpeg 40 {chroma}"
    rounded = np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
    assert np.array_equal(setting.apply(noisy), by_pillow(rounded, 40, chroma))


def test_chroma_is_subsampled_only_where_asked_for() -> None:
    """Single coloured pixels survive 4:4:4 of quality 100 and not 4:2:0."""
    image = np.full((16, 16, 3), 128, np.uint8)
    image[::2, ::2] = (200, 90, 128)
    assert np.abs(Jpeg(100, "4:4:4").apply(image).astype(int) - image).max() <= 3
    assert np.abs(Jpeg(100, "4:2:0").apply(image).astype(int) - image).max() > 20


def test_gray_jpeg_keeps_its_shape() -> None:
    image = picture(1)[:, :, :1]
    found = Jpeg(95).apply(image)
    assert found.shape == image.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - image).mean() < 1.5


@pytest.mark.parametrize("text", ["", "high", "0", "101", "75:4:1:1", "75.5", "-3"])
def test_wrong_jpeg_settings_get_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"JPEG|subsampling"):
        Jpeg.parse(text)


@pytest.mark.parametrize("text", ["", "1", "a,b", "0.1,0.2,0.3", "-0.1,0", "0,2", "nan,0"])
def test_wrong_variances_get_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="variances"):
        PoissonGaussNoise.parse(text)
    with pytest.raises(UsageError, match="between 0 and 255"):
        WhiteNoise(float("nan"))


def test_poisson_gauss_has_the_variance_it_says() -> None:
    """Var = a x + b at black, at middle gray and at white: standard deviations of 5.1, 13.8 and 18.8."""
    random = np.random.default_rng(0)
    noise = PoissonGaussNoise.parse("0.005,0.0004")
    for level, x in ((0, 0.0), (128, 128 / 255), (255, 1.0)):
        flat = np.full((300, 300, 1), level, np.uint8)
        values = noise.add(flat, random.standard_normal)
        assert values.mean() == pytest.approx(level, abs=0.3)
        assert values.std() == pytest.approx(255 * math.sqrt(0.005 * x + 0.0004), rel=0.02)
    constant = PoissonGaussNoise(0, (20 / 255) ** 2).add(flat, lambda shape: np.ones(shape))
    np.testing.assert_allclose(constant, WhiteNoise(20).add(flat, lambda shape: np.ones(shape)))


def test_eight_bit_inputs_are_what_a_file_holds(clean: Path) -> None:
    float_noise, truth = open_dataset(clean, "denoise", sigmas=(80,)).cases[0].load()
    data = open_dataset(clean, "denoise", sigmas=(80,), eight_bit=True)
    noisy, _ = data.cases[0].load()
    assert noisy.dtype == np.uint8 and float_noise.min() < 0
    assert np.array_equal(noisy, np.clip(np.rint(float_noise), 0, 255))
    assert data.settings["eight_bit"] is True and "rounded to 8 bit" in data.made
    assert np.array_equal(truth, picture(1))


def test_eight_bit_blurred_inputs(clean: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.ones((3, 3)))
    options: dict[str, Any] = {"kernels": tmp_path / "k.npy"}
    exact, _ = open_dataset(clean, "deblur", **options).cases[0].load()
    rounded, _ = open_dataset(clean, "deblur", eight_bit=True, **options).cases[0].load()
    assert rounded.dtype == np.uint8 and np.array_equal(rounded, np.clip(np.rint(exact), 0, 255))


def test_noise_and_jpeg_make_a_condition_each(clean: Path) -> None:
    settings = [Jpeg(40), Jpeg(95, "4:4:4")]
    data = open_dataset(clean, "denoise", sigmas=(10,), jpeg=settings)
    assert data.conditions == ["sigma 10, jpeg 40 4:2:0", "sigma 10, jpeg 95 4:4:4"]
    assert data.settings["jpeg"] == ["40 4:2:0", "95 4:4:4"] and "JPEG by Pillow" in data.made
    noisy, _ = open_dataset(clean, "denoise", sigmas=(10,)).cases[1].load()
    compressed, truth = data.cases[3].load()
    assert np.array_equal(compressed, Jpeg(95, "4:4:4").apply(noisy)) and np.array_equal(truth, picture(2))
    alone = open_dataset(clean, "denoise", jpeg=[Jpeg(40)])
    assert alone.conditions == ["jpeg 40 4:2:0"]
    assert np.array_equal(alone.cases[0].load()[0], by_pillow(picture(1), 40, "4:2:0"))
    shot = open_dataset(clean, "denoise", poisson_gauss=[PoissonGaussNoise(0.01, 0.0)])
    assert shot.conditions == ["poisson-gauss 0.01,0"] and shot.settings["poisson_gauss"] == ["0.01,0"]
    assert open_dataset(clean, "denoise").conditions == ["sigma 15", "sigma 25", "sigma 50"]
    with pytest.raises(RestortError, match="not by upscale"):
        open_dataset(clean, "upscale", scale=2, poisson_gauss=[PoissonGaussNoise(0.01, 0.0)])


def test_small_pictures_and_pairs_are_compressed_too(clean: Path, tmp_path: Path) -> None:
    plain, _ = open_dataset(clean, "upscale", scale=2).cases[0].load()
    [first, _] = open_dataset(clean, "upscale", scale=2, jpeg=[Jpeg(75)]).cases
    assert first.condition == "x2, jpeg 75 4:2:0"
    assert np.array_equal(first.load()[0], by_pillow(np.asarray(plain), 75, "4:2:0"))
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs/a_real.png", Picture(picture(1)))
    write(tmp_path / "pairs/a_mean.png", Picture(picture(2)))
    [pair] = open_dataset(tmp_path / "pairs", "denoise", jpeg=[Jpeg(75)]).cases
    degraded, truth = pair.load()
    assert pair.condition == "pairs, jpeg 75 4:2:0"
    assert np.array_equal(degraded, by_pillow(picture(1), 75, "4:2:0")) and np.array_equal(truth, picture(2))


def test_the_input_is_scored_as_it_was_compressed(clean: Path) -> None:
    report = evaluate(unchanged, clean, "denoise", jpeg=[Jpeg(20), Jpeg(90)])
    low, high = report.averages()[:2]
    assert low.psnr == low.psnr_input < high.psnr == high.psnr_input


def test_psnr_and_ssim_need_no_scikit_image(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    [row, _] = evaluate(unchanged, clean, "denoise", sigmas=(10,)).rows
    assert row.psnr > 27 and row.ssim is not None and 0 < row.ssim < 1


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("restort.backends.registry.create", create)
    return write_weights(tmp_path / "denoise.safetensors", RESTORMER, metadata={"task": "denoise"})


def test_the_command_measures_it(restort: Any, clean: Path, network: Path, tmp_path: Path) -> None:
    record = tmp_path / "r.json"
    told = restort(
        *("evaluate", "--weights", network, "--dataset", clean, "-o", record),
        *("--jpeg", "40", "95:4:4:4", "--sigma", "10", "--poisson-gauss", "0.01,0.0004", "--eight-bit"),
    )
    assert told.status == 0, told.err
    kept = json.loads(record.read_text())
    assert [mean["condition"] for mean in kept["averages"]] == [
        "sigma 10, jpeg 40 4:2:0",
        "poisson-gauss 0.01,0.0004, jpeg 40 4:2:0",
        "sigma 10, jpeg 95 4:4:4",
        "poisson-gauss 0.01,0.0004, jpeg 95 4:4:4",
        "all",
    ]
    assert kept["settings"]["eight_bit"] is True
    told = restort("evaluate", "--weights", network, "--dataset", clean, "--jpeg", "best")
    assert told.status == 2 and "'best' is no JPEG setting" in told.err


def test_the_command_computes_in_float32_unless_told_otherwise() -> None:
    from restort.cli.main import parser

    words = ["evaluate", "--model", "m", "--dataset", "d"]
    assert parser().parse_args(words).precision == "fp32"
    assert parser().parse_args([*words, "--precision", "auto"]).precision == "auto"
    assert parser().parse_args(["denoise", "x.png", "-o", "y.png"]).precision == "auto"
