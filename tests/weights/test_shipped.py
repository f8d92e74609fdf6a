"""Every model that ships, run on a picture: the score it must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restort
from restort.evaluation.blur_kernels import blur
from restort.evaluation.metrics import psnr, psnr_y
from restort.evaluation.resize import imresize
from restort.weights.catalogue import WEIGHTS_FOLDER, entries

SHIPPED = [entry for entry in entries() if entry.shipped]
PHOTOGRAPH = Path(__file__).resolve().parents[2] / "examples/kitten_small.png"
LIMIT = 8 * 2**20


def clean() -> np.ndarray:
    pixels = np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))
    return pixels[: pixels.shape[0] // 48 * 48, : pixels.shape[1] // 48 * 48]


def test_all_five_ship() -> None:
    names = {
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


@pytest.mark.parametrize("sigma, least", [(15, 33.1), (25, 30.3), (50, 26.8)])
@pytest.mark.parametrize("entry", [e for e in SHIPPED if e.task == "denoise"], ids=lambda entry: entry.name)
def test_denoising(entry: restort.weights.catalogue.Entry, sigma: int, least: float) -> None:
    truth = clean()
    noise = np.random.Generator(np.random.PCG64(sigma)).standard_normal(truth.shape) * sigma
    with restort.load(entry.name, backend="onnxruntime") as model:
        noisy = ((truth + noise) / 255).astype(np.float32).transpose(2, 0, 1)[None]
        result = np.clip(np.round(model.run(noisy)[0].transpose(1, 2, 0) * 255), 0, 255)
    assert psnr(result, truth, peak=255) > least


@pytest.mark.parametrize("scale, least", [(2, 33.9), (3, 29.75), (4, 27.85)])
def test_upscaling(scale: int, least: float) -> None:
    truth = clean()
    with restort.load(f"elan-light-x{scale}", backend="onnxruntime") as model:
        result = model(imresize(truth, 1 / scale))
    assert psnr_y(result, truth, border=scale) > least


def path_kernel(length: int, angle: float) -> np.ndarray:
    """A straight path of even speed, centred, as (k, k) of sum 1."""
    half = length // 2 + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    return np.asarray(kernel / kernel.sum())


@pytest.mark.parametrize("length, angle, least", [(9, 0.5, 2.2), (15, 2.2, 2.3)])
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
