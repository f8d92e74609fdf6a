"""Alpha through a Model: restored by an enlarging network, kept at scale 1, never worse than interpolation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.evaluation.metrics import psnr
from restort.imaging.alpha import resize_alpha
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference.model import Model
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import ELAN, RESTORMER, FakeRunner, write_weights

RNG = np.random.default_rng(5)


@pytest.fixture
def x2(tmp_path: Path) -> Any:
    return load_weights(write_weights(tmp_path / "x2.safetensors", ELAN[2]))


def disc(size: int, radius: float) -> np.ndarray:
    """A disc of 255 on 0 with an antialiased edge, (size, size)."""
    y, x = (np.mgrid[: size * 8, : size * 8] + 0.5) / 8 - size / 2 - 0.3
    inside = (x * x + y * y < radius * radius).astype(float)
    return np.rint(255 * inside.reshape(size, 8, size, 8).mean((1, 3)))


def halved(x: np.ndarray, scale: int) -> np.ndarray:
    side = x.shape[0] // scale
    return np.rint(x.reshape(side, scale, side, scale).mean((1, 3))).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_mask_comes_nearer_to_the_truth_than_by_interpolation(scale: int) -> None:
    truth = disc(128, 45)
    small = halved(truth, scale)
    with restort.load(f"elan-light-x{scale}", backend="onnxruntime", tile=64) as model:
        result = model(np.dstack([np.full((*small.shape, 3), 90, np.uint8), small]))[:, :, 3]
    assert psnr(result, truth, peak=255) > psnr(resize_alpha(small, scale), truth, peak=255) + 1.5
    assert (result[:4] == 0).all() and (result[60:68, 60:68] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", ["auto", 64, None])
def test_alpha_goes_through_the_network(x2: Any, dtype: type, tile: Any) -> None:
    peak = np.iinfo(dtype).max
    alpha = RNG.integers(1, peak, (90, 133)).astype(dtype)
    picture = Picture(RNG.integers(0, peak, (90, 133, 1)).astype(dtype), alpha)
    seen: list[tuple[int, int]] = []
    with Model(x2, FakeRunner(ELAN[2], "fp32"), name="fake", tile=tile) as model:
        restored = model(picture, progress=lambda done, total: seen.append((done, total)))
        total = 2 * model.tile_layout(90, 133).count
    assert restored.alpha is not None
    assert np.array_equal(restored.alpha, alpha.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(restored.pixels, picture.pixels.repeat(2, 0).repeat(2, 1))
    assert seen == [(i + 1, total) for i in range(total)]


def test_alpha_when_memory_is_short(x2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved tiles serve alpha, too, and a size that failed for the colours is not tried again for alpha."""
    monkeypatch.setenv("FAKE_ROOM", str(100 * 100))
    image = RNG.integers(1, 256, (150, 250, 4), np.uint8)
    runner = FakeRunner(ELAN[2], "fp32")
    with Model(x2, runner, name="fake", tile=256, overlap=32) as model:
        result = model(image)
    assert np.array_equal(result, image.repeat(2, 0).repeat(2, 1))
    assert len(runner.failed) == len(set(runner.failed)) > 0


@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_alpha_needs_no_network(x2: Any, value: int) -> None:
    image = np.dstack([RNG.integers(0, 256, (40, 30, 3), np.uint8), np.full((40, 30), value, np.uint8)])
    runner = FakeRunner(ELAN[2], "fp32")
    with Model(x2, runner, name="fake") as model:
        result = model(image)
    assert runner.calls == 1
    assert (result[:, :, 3] == value).all()


def test_alpha_is_kept_exactly_at_scale_1(tmp_path: Path) -> None:
    weights = load_weights(write_weights(tmp_path / "x1.safetensors", RESTORMER))
    image = RNG.integers(0, 256, (24, 24, 4), np.uint8)
    runner = FakeRunner(RESTORMER, "fp32")
    with Model(weights, runner, name="fake") as model:
        result = model(image)
    assert runner.calls == 1
    assert np.array_equal(result[:, :, 3], image[:, :, 3])
    visible = image[:, :, 3] > 0
    assert np.array_equal(result[visible][:, :3], 255 - image[visible][:, :3])


def test_files(x2: Any, tmp_path: Path) -> None:
    picture = Picture(RNG.integers(0, 256, (40, 30, 3), np.uint8), RNG.integers(1, 256, (40, 30), np.uint8))
    write(tmp_path / "in.png", picture)
    with Model(x2, FakeRunner(ELAN[2], "fp32"), name="fake") as model:
        model.restore_file(tmp_path / "in.png", tmp_path / "out.png")
    result = read(tmp_path / "out.png")
    assert picture.alpha is not None and result.alpha is not None
    assert np.array_equal(result.alpha, picture.alpha.repeat(2, 0).repeat(2, 1))
