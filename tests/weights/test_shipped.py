"""Every model that ships, run on a picture: the score it must keep."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import restort
from restort.evaluation.blur_kernels import blur
from restort.evaluation.metrics import psnr, psnr_y
from restort.evaluation.resize import imresize
from restort.weights.catalogue import WEIGHTS_FOLDER, entries

SHIPPED = [entry for entry in entries() if entry.shipped]
PHOTOGRAPH = Path(__file__).with_name("kitten_small.png")  # CC0 1.0, from budgie-backgrounds
LIMIT = 12 * 2**20


def clean() -> np.ndarray:
    pixels = np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))
    return pixels[: pixels.shape[0] // 48 * 48, : pixels.shape[1] // 48 * 48]


def test_what_ships() -> None:
    names = {
        "elan-photo-x2",
        "elan-photo-x4",
        "restormer-small-photo",
        "elan-light-x2",
        "elan-light-x3",
        "elan-light-x4",
        "restormer-small-denoise",
        "restormer-small-deblur",
    }
    assert {entry.name for entry in SHIPPED} == names


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_file_and_card(entry: restort.weights.catalogue.Entry) -> None:
    file = WEIGHTS_FOLDER / entry.filename
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert file.stat().st_size < LIMIT
    assert entry.commercial_use
    for heading in ("## Data", "## Recipe", "## Scores", "## Limits"):
        assert heading in card


@pytest.mark.parametrize(
    "name, sigma, least",
    [
        *(("restormer-small-denoise", *row) for row in ((15, 33.1), (25, 30.3), (50, 26.8))),
        *(("restormer-small-photo", *row) for row in ((15, 32.8), (25, 30.2), (50, 26.8))),
    ],
)
def test_denoising(name: str, sigma: int, least: float) -> None:
    truth = clean()
    noise = np.random.Generator(np.random.PCG64(sigma)).standard_normal(truth.shape) * sigma
    with restort.load(name, backend="onnxruntime") as model:
        noisy = ((truth + noise) / 255).astype(np.float32).transpose(2, 0, 1)[None]
        result = np.clip(np.round(model.run(noisy)[0].transpose(1, 2, 0) * 255), 0, 255)
    assert psnr(result, truth, peak=255) > least


def saved(pixels: np.ndarray, quality: int, subsampling: int = 2) -> np.ndarray:
    """The picture after a JPEG round trip by Pillow; subsampling 2 is 4:2:0."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(data))


def gain(name: str, damaged: np.ndarray, truth: np.ndarray) -> float:
    with restort.load(name, backend="onnxruntime") as model:
        return psnr(model(damaged), truth, peak=255) - psnr(damaged, truth, peak=255)


@pytest.mark.parametrize("quality, least", [(20, 0.9), (40, 1.0)])
def test_jpeg_artefacts_are_removed(quality: int, least: float) -> None:
    truth = clean()
    assert gain("restormer-small-photo", saved(truth, quality), truth) > least


def test_noise_is_removed_from_a_camera_jpeg() -> None:
    """White noise saved with 4:2:0 chroma: the denoiser of white noise returns it as it is."""
    truth = clean()
    noise = np.random.Generator(np.random.PCG64(3)).standard_normal(truth.shape) * 15
    damaged = saved(np.clip(np.round(truth + noise), 0, 255).astype(np.uint8), 95)
    assert gain("restormer-small-photo", damaged, truth) > 4.5
    assert gain("restormer-small-denoise", damaged, truth) < 0.5


def test_an_undamaged_picture_is_hardly_changed() -> None:
    """Fur is the hardest of textures for a denoiser; photographs without such texture stay above 55 dB."""
    truth = imresize(clean(), 0.5)  # without the noise and the JPEG of its camera
    with restort.load("restormer-small-photo", backend="onnxruntime") as model:
        assert psnr(model(truth), truth, peak=255) > 41.0


@pytest.mark.parametrize("scale", [2, 4])
def test_upscaling_of_a_jpeg(scale: int) -> None:
    truth = clean()
    low = saved(imresize(truth, 1 / scale), 75)
    scores = {}
    for kind in ("light", "photo"):
        with restort.load(f"elan-{kind}-x{scale}", backend="onnxruntime") as model:
            scores[kind] = psnr_y(model(low), truth, border=scale)
    assert scores["photo"] > scores["light"] + 0.35


@pytest.mark.parametrize("scale, least", [(2, 33.9), (3, 29.75), (4, 27.85)])
def test_upscaling(scale: int, least: float) -> None:
    truth = clean()
    with restort.load(f"elan-light-x{scale}", backend="onnxruntime") as model:
        result = model(imresize(truth, 1 / scale))
    assert psnr_y(result, truth, border=scale) > least


def test_deblurring_leaves_alone_what_is_sharp() -> None:
    """A picture, the same as a JPEG, and black text on white, where fringes would show as colour.

    The picture's background is out of focus, of which the fifth stage sharpens a little; others stay above 55 dB.
    """
    truth = imresize(clean(), 0.5)
    page = Image.new("RGB", (160, 48), "white")
    ImageDraw.Draw(page).text((6, 8), "The quick brown fox 0123", "black", ImageFont.load_default(14))
    text = np.asarray(page)
    assert gain("restormer-small-deblur", saved(truth, 75), truth) > -0.2
    with restort.load("restormer-small-deblur", backend="onnxruntime") as model:
        assert psnr(model(truth), truth, peak=255) > 39
        result = model(text).astype(int)
    assert psnr(result, text, peak=255) > 45
    assert np.ptp(result, axis=2).max() <= 8, "no coloured fringes"


def path_kernel(length: int, angle: float) -> np.ndarray:
    """A straight path of even speed, centred, as (k, k) of sum 1."""
    half = length // 2 + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    return np.asarray(kernel / kernel.sum())


@pytest.mark.parametrize("length, angle, least", [(9, 0.5, 2.0), (15, 2.2, 2.2)])
@pytest.mark.parametrize("entry", [e for e in SHIPPED if e.task == "deblur"], ids=lambda entry: entry.name)
def test_deblurring(entry: restort.weights.catalogue.Entry, length: int, angle: float, least: float) -> None:
    kernel, truth = path_kernel(length, angle), clean()
    margin = len(kernel) // 2
    soft = blur(truth, kernel)
    soft = soft + np.random.Generator(np.random.PCG64(1)).standard_normal(soft.shape) * 2.55
    truth = truth[margin:-margin, margin:-margin]
    with restort.load(entry.name, backend="onnxruntime") as model:
        result = model.run((soft / 255).astype(np.float32).transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    result = np.clip(np.round(result * 255), 0, 255)
    before = np.clip(np.round(soft), 0, 255)
    assert psnr(result, truth, peak=255) > psnr(before, truth, peak=255) + least
