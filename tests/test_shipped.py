"""Every model that ships, run on a picture: the score it must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restort
from restort.measure.quality import psnr, psnr_y
from restort.measure.resize import imresize
from restort.zoo.catalogue import WEIGHTS_FOLDER, entries

SHIPPED = [entry for entry in entries() if entry.shipped]
PHOTOGRAPH = Path(__file__).resolve().parents[1] / "examples/kitten_small.png"
LIMIT = 8 * 2**20


def clean() -> np.ndarray:
    pixels = np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))
    return pixels[: pixels.shape[0] // 48 * 48, : pixels.shape[1] // 48 * 48]


def test_something_ships() -> None:
    assert {entry.name for entry in SHIPPED} >= {"restormer-small-denoise"}


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_file_and_card(entry: restort.zoo.catalogue.Entry) -> None:
    file = WEIGHTS_FOLDER / entry.filename
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert file.stat().st_size < LIMIT
    assert entry.commercial_use
    for heading in ("## Data", "## Recipe", "## Scores", "## Limits"):
        assert heading in card


@pytest.mark.parametrize("sigma, least", [(15, 33.1), (25, 30.3), (50, 26.8)])
@pytest.mark.parametrize("entry", [e for e in SHIPPED if e.task == "denoise"], ids=lambda entry: entry.name)
def test_denoising(entry: restort.zoo.catalogue.Entry, sigma: int, least: float) -> None:
    truth = clean()
    noise = np.random.Generator(np.random.PCG64(sigma)).standard_normal(truth.shape) * sigma
    with restort.load(entry.name, backend="onnxruntime") as model:
        noisy = ((truth + noise) / 255).astype(np.float32).transpose(2, 0, 1)[None]
        result = np.clip(np.round(model.run(noisy)[0].transpose(1, 2, 0) * 255), 0, 255)
    assert psnr(result, truth, peak=255) > least


@pytest.mark.parametrize("entry", [e for e in SHIPPED if e.task == "upscale"], ids=lambda entry: entry.name)
def test_upscaling(entry: restort.zoo.catalogue.Entry) -> None:
    truth = clean()
    small = imresize(truth, 1 / entry.scale)
    with restort.load(entry.name, backend="onnxruntime") as model:
        result = model(small)
    bicubic = imresize(small, entry.scale)
    assert psnr_y(result, truth, border=entry.scale) > psnr_y(bicubic, truth, border=entry.scale) + 1
