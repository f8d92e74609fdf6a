"""Test sets of every layout, and scores that are known beforehand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from restort.errors import RestortError, UsageError
from restort.evaluation.datasets import open_dataset
from restort.evaluation.resize import imresize
from restort.evaluation.scoring import evaluate
from restort.imaging.encode import write
from restort.imaging.picture import Picture


def picture(number: int, height: int = 48, width: int = 60, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(number)
    return imresize(rng.integers(0, 256, (height // 4, width // 4, channels), dtype=np.uint8), 4)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, Picture(pixels), overwrite=True)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for number in (1, 2, 10):
        save(tmp_path / f"clean/p{number}.png", picture(number))
    (tmp_path / "clean/notes.txt").write_text("not a picture")
    return tmp_path / "clean"


def same(image: np.ndarray) -> np.ndarray:
    return image


def larger(image: np.ndarray) -> np.ndarray:
    return image.repeat(2, axis=0).repeat(2, axis=1)


def test_noise_is_seeded_per_picture_and_unclipped(clean: Path) -> None:
    full = open_dataset(clean, "denoise", sigmas=(15, 50))
    assert [case.name for case in full.cases] == ["p1", "p2", "p10"] * 2
    assert full.conditions == ["sigma 15", "sigma 50"]
    noisy, reference = full.cases[4].load()
    expected = np.random.Generator(np.random.PCG64([0, 1])).standard_normal(reference.shape)
    np.testing.assert_array_equal(noisy, reference + 50 * expected)
    assert noisy.min() < 0 or noisy.max() > 255
    again, _ = open_dataset(clean, "denoise", sigmas=(50,), limit=2).cases[1].load()
    np.testing.assert_array_equal(noisy, again)
    other, _ = open_dataset(clean, "denoise", sigmas=(50,), seed=1).cases[1].load()
    assert not np.array_equal(noisy, other)


def test_a_denoiser_that_knows_the_answer(clean: Path) -> None:
    report = evaluate(same, clean, "denoise", sigmas=(10, 20))
    assert [mean.condition for mean in report.averages()] == ["sigma 10", "sigma 20", "all"]
    for mean, sigma in zip(report.averages(), (10, 20), strict=False):
        assert mean.psnr_input == pytest.approx(20 * math.log10(255 / sigma), abs=0.15)
        assert mean.psnr_input <= mean.psnr < mean.psnr_input + 1  # clipping helps, rounding hardly hurts
    truth = [open_dataset(clean, "denoise", sigmas=(10,)).cases[i].load()[1] for i in range(3)]
    answers = iter(truth)
    perfect = evaluate(lambda image: next(answers).astype(np.float32) / 255, clean, "denoise", sigmas=(10,))
    assert all(row.psnr == math.inf and row.ssim == pytest.approx(1) for row in perfect.rows)
    assert perfect.to_json()["rows"][0]["psnr"] is None


def test_published_low_resolution_files_are_used(tmp_path: Path) -> None:
    high = picture(3, 52, 64)[:50, :63]
    save(tmp_path / "HR/a.png", high)
    low = imresize(high[:50, :62], 0.5)
    marked = 255 - low
    save(tmp_path / "LR_bicubic/X2/ax2.png", marked)
    data = open_dataset(tmp_path, "upscale", scale=2)
    degraded, reference = data.cases[0].load()
    assert np.array_equal(degraded, marked) and np.array_equal(reference, high[:50, :62])
    made, reference = open_dataset(tmp_path, "upscale", scale=3).cases[0].load()
    assert np.array_equal(made, imresize(high[:48, :63], 1 / 3)) and reference.shape == (48, 63, 3)
    save(tmp_path / "LR_bicubic/X2/ax2.png", low[:-4])
    with pytest.raises(RestortError, match="sizes do not fit"):
        data.cases[0].load()
    (tmp_path / "LR_bicubic/X2/ax2.png").unlink()
    with pytest.raises(RestortError, match=r"no low-resolution picture a\.png"):
        open_dataset(tmp_path, "upscale", scale=2).cases[0].load()


def test_bicubic_scores_as_itself(clean: Path) -> None:
    def bicubic(image: np.ndarray) -> np.ndarray:
        return imresize(np.rint(image * 255).astype(np.uint8), 2).astype(np.float32) / 255

    report = evaluate(bicubic, clean, "upscale", scale=2)
    assert all(row.psnr == row.psnr_input for row in report.rows)
    assert "bicubic" in report.table() and "+0.000" in report.table()


def test_pairs_of_both_layouts(tmp_path: Path) -> None:
    a, b = picture(1), picture(2)
    save(tmp_path / "polyu/x_real.png", a)
    save(tmp_path / "polyu/x_mean.png", b)
    save(tmp_path / "rain/input/1.png", a)
    save(tmp_path / "rain/target/1.png", b)
    for folder, task in ((tmp_path / "polyu", "denoise"), (tmp_path / "rain", "derain")):
        [case] = open_dataset(folder, task).cases
        degraded, reference = case.load()
        assert np.array_equal(degraded, a) and np.array_equal(reference, b)
    (tmp_path / "rain/target/1.png").unlink()
    with pytest.raises(RestortError, match="no counterpart"):
        open_dataset(tmp_path / "rain", "derain")


def test_blur_and_alignment(clean: Path, tmp_path: Path) -> None:
    spot = np.zeros((2, 9, 9))
    spot[0, 4, 4] = spot[1, 5, 3] = 1  # nothing, and a mere translation
    np.save(tmp_path / "k.npy", spot)
    options = {"kernels": tmp_path / "k.npy", "noise": 0.0}
    plain = evaluate(same, clean, "deblur", kernel_centre="stored", align=True, **options)
    still, moved = plain.averages()[:2]
    assert still.psnr > 100 and moved.psnr < 40
    assert moved.psnr_aligned is not None and moved.psnr_aligned > moved.psnr + 8
    assert "aligned" in plain.table()
    centred = evaluate(same, clean, "deblur", **options)
    assert all(row.psnr > 100 for row in centred.rows)
    assert centred.rows[0].psnr_aligned is None


def test_limit_and_crop(clean: Path) -> None:
    report = evaluate(larger, clean, "upscale", scale=2, limit=2, crop=20, ssim=False)
    assert [(row.name, row.width, row.height) for row in report.rows] == [("p1", 20, 20), ("p2", 20, 20)]
    assert report.rows[0].ssim is None


def test_gray_and_colour_meet_the_network(tmp_path: Path) -> None:
    save(tmp_path / "gray.png", picture(1, channels=1))
    save(tmp_path / "rgb.png", picture(2))
    for channels in (1, 3):
        for case in open_dataset(tmp_path, "denoise", channels=channels, sigmas=(5,)).cases:
            assert case.load()[0].shape == (48, 60, channels)
    assert len(evaluate(same, tmp_path, "denoise", channels=1, sigmas=(5,)).rows) == 2


def test_the_record_says_what_was_measured(clean: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = evaluate(same, clean, "denoise", sigmas=(25,), progress=lambda *args: seen.append(args))
    assert seen[0] == (0, 3, "p1, sigma 25") and seen[-1] == (3, 3, "")
    report.save(tmp_path / "r.json")
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["settings"] == {"sigmas": [25], "seed": 0, "limit": None, "crop": None}
    assert (
        "8-bit results" in record["metrics"]["psnr"] and "use_sample_covariance" in record["metrics"]["ssim"]
    )
    assert record["averages"][0]["pictures"] == 3 and len(record["rows"]) == 3
    assert {"numpy", "python"} <= record["versions"].keys() and record["date"] and record["command"]
    lines = report.table().splitlines()
    assert lines[0].split() == ["condition", "PSNR", "SSIM", "input", "gain"]
    assert len(report.table(pictures=False).splitlines()) == len(lines) - 3


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (None, {}, "name the task"),
        ("paint", {}, "no task paint"),
        ("upscale", {}, "does not"),
        ("deblur", {}, "--blur-kernels"),
        ("derain", {}, "input/ and target/"),
        ("denoise", {"limit": 0}, "limit"),
        ("denoise", {"crop": 3}, "crop"),
        ("denoise", {"sigmas": (300,)}, "between 0 and 255"),
        ("denoise", {"channels": 6}, "6 input channels"),
    ],
)
def test_wrong_requests_get_one_sentence(
    clean: Path, task: str | None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RestortError, match=message):
        evaluate(same, clean, task, **options)  # type: ignore[arg-type]


def test_wrong_folders_and_results_get_one_sentence(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(RestortError, match="no folder"):
        evaluate(same, tmp_path / "none", "denoise")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RestortError, match="no pictures"):
        evaluate(same, tmp_path / "empty", "denoise")
    with pytest.raises(RestortError, match="made a picture of shape"):
        evaluate(same, clean, "upscale", scale=2)
    with pytest.raises(RestortError, match="NaN"):
        evaluate(lambda image: image * np.float32("nan"), clean, "denoise")


def test_a_model_tells_its_task_and_scale(clean: Path) -> None:
    class Spec:
        architecture, in_channels = "elan", 3

    class Weights:
        digest = "0" * 64

    class Model:
        spec, weights, scale, task, name = Spec, Weights, 2, "upscale", "tiny"
        backend, precision, tile = "none", "fp32", None

        def run(self, x: np.ndarray) -> np.ndarray:
            assert x.dtype == np.float32 and x.ndim == 4 and x.flags.c_contiguous
            return x.repeat(2, axis=2).repeat(2, axis=3)

    report = evaluate(Model(), clean)  # type: ignore[arg-type]
    assert report.task == "upscale" and report.model["name"] == "tiny" and report.model["tile"] == "none"
    with pytest.raises(UsageError, match="2 times, not 4"):
        evaluate(Model(), clean, scale=4)  # type: ignore[arg-type]


def test_baselines_of_the_published_sets(shared: Path) -> None:
    """Bicubic enlargement: 33.66, 30.39, 28.42 dB in every paper's table."""
    for scale, expected in ((2, 33.66), (3, 30.39), (4, 28.42)):

        def enlarge(image: np.ndarray, scale: int = scale) -> np.ndarray:
            return np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)

        report = evaluate(enlarge, shared / "data/test/set5", "upscale", scale=scale, ssim=False)
        assert report.averages()[0].psnr_input == pytest.approx(expected, abs=0.02)


def test_elan_light_scores_what_its_authors_code_scores(shared: Path, tmp_path: Path) -> None:
    """One of the pictures that make 32.438 dB on Set5 with the original network and code."""
    torch = pytest.importorskip("torch")
    from restort.models.torch_network import build
    from restort.weights.checkpoint import load_weights

    weights = load_weights(next((shared / "weights").glob("elan_light_x4*.safetensors")))
    network = build(weights.spec, weights.state)

    def restore(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])) * 255
            return np.asarray(network(x)[0].permute(1, 2, 0)) / 255

    for name in ("HR/butterfly.png", "LR_bicubic/X4/butterflyx4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(shared / "data/test/set5" / name)
    report = evaluate(restore, tmp_path, "upscale", scale=4, ssim=False)
    assert report.rows[0].psnr == pytest.approx(29.210, abs=0.01)
