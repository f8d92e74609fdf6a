"""A backend whose memory runs out: smaller parts instead of an end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.errors import OutOfMemory, RestortError
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference.model import Model
from restort.models.spec import Spec
from restort.tiling.halving import Halving
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import ELAN, RESTORMER, FakeRunner, write_weights

FAKE = Path(__file__).resolve().parents[1] / "fakes/fake_backend.py"


def picture(n: int, h: int, w: int) -> np.ndarray:
    return np.random.default_rng(0).random((n, 3, h, w), np.float32)


@pytest.mark.parametrize("spec", [ELAN[2], RESTORMER])
@pytest.mark.parametrize(
    ("shape", "room", "failed", "told"),
    [
        ((1, 256, 256), 256 * 256, [], []),
        ((1, 256, 256), 200 * 200, [(1, 3, 256, 256)], ["128x128"]),
        (
            (1, 256, 512),
            100 * 100,
            [(1, 3, 256, 512), (1, 3, 256, 256), (1, 3, 128, 128)],
            ["256", "128", "64"],
        ),
        ((3, 256, 128), 256 * 128, [(3, 3, 256, 128)], []),
        ((2, 256, 128), 128 * 128, [(2, 3, 256, 128), (1, 3, 256, 128)], ["128x128"]),
    ],
)
def test_parts_make_the_whole(
    spec: Spec,
    shape: tuple[int, int, int],
    room: int,
    failed: list[Any],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_ROOM", str(room))
    runner, heard = FakeRunner(spec, "fp32"), []
    x = picture(*shape)
    y = Halving(runner, spec, tell=heard.append)(x)
    monkeypatch.delenv("FAKE_ROOM")
    np.testing.assert_allclose(y, runner(x), atol=1e-6)
    assert runner.failed == failed  # a size that failed is not tried again
    assert len(heard) >= len(told) and all(any(f"of {t}" in line for line in heard) for t in told)


def test_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROOM", "1000")
    with pytest.raises(OutOfMemory, match="out of memory for a tile of 64x64 pixels, the smallest"):
        Halving(FakeRunner(RESTORMER, "fp32"), RESTORMER)(picture(1, 256, 256))


@pytest.mark.parametrize("tile", ["auto", 192, None])
def test_a_model_goes_on(
    tile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ELAN[2]
    weights = load_weights(write_weights(tmp_path / "weights.safetensors", spec))
    monkeypatch.setenv("FAKE_ROOM", str(100 * 100))
    image = (picture(1, 150, 250)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    with (
        Model(weights, FakeRunner(spec, "fp32"), name="fake", tile=tile, overlap=32) as model,
        caplog.at_level(logging.WARNING, "restort"),
    ):
        if tile is None:  # whoever asks for the whole picture gets that or nothing
            with pytest.raises(RestortError, match="not enough memory for a picture of"):
                model(image)
            return
        result = model(image)
        floats = model(image / np.float32(255))
    want = image.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(result, want)
    np.testing.assert_allclose(floats, want / np.float32(255), atol=1e-6)
    assert caplog.records and "continuing with tiles of" in caplog.text


class Roomy(FakeRunner):
    """Memory of its own, counted its own way."""

    def tile_memory(self) -> tuple[int, int]:
        return 200 * 200 * 1000, 1000


def test_auto_asks_the_backend_for_its_memory(tmp_path: Path) -> None:
    weights = load_weights(write_weights(tmp_path / "weights.safetensors", RESTORMER))
    with Model(weights, Roomy(RESTORMER, "fp32"), name="fake") as model:
        assert model.tile_layout(200, 200).whole
        assert model.tile_layout(200, 208).tile_shape == (192, 192)
        assert model.tile_layout(200, 200, batch=4).tile_shape == (128, 128)


def test_the_command_line_says_so(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.safetensors", RESTORMER)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 300, 3), np.uint8)
    write(tmp_path / "a.png", Picture(pixels))
    arguments = ["run", "a.png", "-o", "b.png", "--weights", str(weights), "--tile", "256"]
    done = subprocess.run(
        [sys.executable, str(FAKE), *arguments],
        env={**os.environ, "FAKE_ROOM": "20000"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("continuing with tiles of 128x128") == 1
    np.testing.assert_array_equal(read(tmp_path / "b.png").pixels, 255 - pixels)
