"""`--strength`: blended with the input, everything else as it was; and 16-bit pictures in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort as package
from restort.evaluation.resize import imresize
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.fakes import fake_backend
from tests.fakes.fake_backend import ELAN, RESTORMER, FakeRunner, write_weights

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("restort.backends.registry.create", fake_backend.create)
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def inverting(tmp_path: Path) -> Path:
    """A network of scale 1: the fake backend inverts the picture."""
    return write_weights(tmp_path / "x1.safetensors", RESTORMER, metadata={"task": "denoise"})


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A network of scale 2: the fake backend repeats pixels."""
    return write_weights(tmp_path / "x2.safetensors", ELAN[2])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_are_blended(inverting: Path, dtype: type) -> None:
    peak = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    image = (RNG.random((16, 24, 3)) * peak).astype(dtype)
    with package.load(inverting, strength=0.25) as model:
        result = model(image)
    expected = 0.75 * image.astype(float) + 0.25 * (peak - image.astype(float))
    np.testing.assert_allclose(result, expected, atol=1e-6 if peak == 1 else 0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_none_gives_the_input_and_all_the_result(inverting: Path, dtype: type) -> None:
    image = RNG.integers(0, np.iinfo(dtype).max + 1, (16, 24, 3), dtype=dtype)
    with package.load(inverting, strength=0.0) as model:
        assert np.array_equal(model(image), image)
    with package.load(inverting) as model, package.load(inverting, strength=1.0) as full:
        assert np.array_equal(full(image), model(image))
        assert full.recipe() == model.recipe() and "strength" not in model.recipe()


def test_an_enlarged_picture_is_blended_with_the_bicubic_one(doubling: Path) -> None:
    image = RNG.integers(40, 200, (10, 12, 3), dtype=np.uint8)
    repeated = image.repeat(2, axis=0).repeat(2, axis=1).astype(float)
    with package.load(doubling, strength=0.5) as model:
        result = model(image)
    bicubic = imresize(image.astype(float), 2)
    np.testing.assert_allclose(result, np.clip((repeated + bicubic) / 2, 0, 255), atol=0.51)


def test_alpha_is_enlarged_as_strongly_as_the_colours(doubling: Path) -> None:
    image = RNG.integers(40, 200, (10, 12, 4), dtype=np.uint8)
    repeated = image.repeat(2, axis=0).repeat(2, axis=1).astype(float)
    with package.load(doubling, strength=0.5) as model:
        result = model(image)
    np.testing.assert_allclose(result, (repeated + imresize(image.astype(float), 2)) / 2, atol=0.51)


def test_tiles_do_not_show(inverting: Path) -> None:
    image = RNG.integers(0, 256, (150, 140, 3), dtype=np.uint8)
    with package.load(inverting, strength=0.6, tile=64, overlap=16) as tiled:
        cut = tiled(image)
    with package.load(inverting, strength=0.6, tile=None) as whole:
        assert np.abs(cut.astype(int) - whole(image)).max() <= 1


def test_alpha_and_metadata_stay(inverting: Path, tmp_path: Path) -> None:
    alpha = RNG.integers(1, 256, (16, 24), dtype=np.uint8)
    pixels = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    write(tmp_path / "a.png", Picture(pixels, alpha, resolution=(11.811, 11.811)))
    with package.load(inverting, strength=0.5) as model:
        model.restore_file(tmp_path / "a.png", tmp_path / "b.png")
    result = read(tmp_path / "b.png")
    assert result.alpha is not None and np.array_equal(result.alpha, alpha)
    assert result.resolution == pytest.approx((11.811, 11.811), abs=0.01)
    assert np.abs(result.pixels.astype(int) - 127.5).max() <= 1  # half the picture, half its inverse


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_wrong_strengths_get_one_sentence(inverting: Path, strength: float) -> None:
    with pytest.raises(package.UsageError, match="strength must lie between 0 and 1"):
        package.load(inverting, strength=strength)


def test_the_command_and_its_manifest(restort: Any, inverting: Path, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.png", Picture(pixels))

    def denoise(*more: object) -> dict[str, Any]:
        told = restort(
            "denoise", tmp_path / "in", "-o", tmp_path / "out", "--weights", inverting, "--json", *more
        )
        assert told.status == 0, told.err
        report: dict[str, Any] = json.loads(told.out)
        return report

    assert denoise()["options"]["strength"] == 1
    inverse = read(tmp_path / "out/a.png").pixels
    assert denoise("--strength", "1")["files"][0]["status"] == "skipped"
    report = denoise("--strength", "0.25")
    assert report["options"]["strength"] == 0.25 and report["files"][0]["status"] == "done"
    expected = 0.75 * pixels.astype(float) + 0.25 * inverse
    np.testing.assert_allclose(read(tmp_path / "out/a.png").pixels, expected, atol=0.51)
    assert denoise("--strength", "0.25")["files"][0]["status"] == "skipped"
    assert denoise("--strength", "0.5")["files"][0]["status"] == "done"


@pytest.mark.parametrize("wrong", ["2", "-0.5", "half", "nan"])
@pytest.mark.parametrize("command", ["upscale", "denoise", "deblur", "run"])
def test_the_command_refuses_other_strengths(restort: Any, command: str, wrong: str) -> None:
    told = restort(command, "a.png", "-o", "b.png", f"--strength={wrong}", "--model", "m")
    assert told.status == 2 and "is not a number from 0 to 1" in told.err


# --- 16 bits ----------------------------------------------------------------------------------------------


class CoarseRunner(FakeRunner):
    """bf16: 8 bits of each value are kept."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.round(super().__call__(x) * 256) / np.float32(256)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeRunner]:
    """The runners made so far; `auto` takes bf16."""
    runners: list[FakeRunner] = []

    def create(weights: Any, backend: str = "auto", precision: str = "auto", **rest: Any) -> FakeRunner:
        coarse = precision in ("auto", "bf16")
        runner = (CoarseRunner if coarse else FakeRunner)(weights.spec, "bf16" if coarse else precision)
        runners.append(runner)
        return runner

    monkeypatch.setattr("restort.backends.registry.create", create)
    return runners


def ramp(dtype: type) -> np.ndarray:
    values = np.linspace(0.3, 0.7, 512) * np.iinfo(dtype).max
    return np.tile(values, (16, 1))[:, :, None].repeat(3, axis=2).astype(dtype)


def test_sixteen_bits_are_computed_in_fp32(inverting: Path, made: list[FakeRunner]) -> None:
    said: list[str] = []
    with package.load(inverting, notify=said.append) as model:
        eight = model(ramp(np.uint8))
        assert [runner.precision for runner in made] == ["bf16"] and model.precision == "bf16"
        assert len(np.unique(eight[0, :, 0])) <= 104
        sixteen = model(ramp(np.uint16))
        assert len(np.unique(sixteen[0, :, 0])) == 512
        assert [runner.precision for runner in made] == ["bf16", "fp32"]
        model(Picture(ramp(np.uint16)))
        assert len(made) == 2 and said.count("16-bit pictures are computed in fp32") == 1
    assert all(runner.closed for runner in made)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_was_asked_for_is_kept(
    inverting: Path, made: list[FakeRunner], precision: str
) -> None:
    with package.load(inverting, precision=precision) as model:
        levels = len(np.unique(model(ramp(np.uint16))[0, :, 0]))
    assert len(made) == 1 and (levels == 512) == (precision == "fp32")


def test_each_file_says_what_computed_it(
    restort: Any, inverting: Path, made: list[FakeRunner], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.png", Picture(ramp(np.uint8)))
    write(tmp_path / "in/b.png", Picture(ramp(np.uint16)))
    words = ("denoise", tmp_path / "in", "-o", tmp_path / "out", "--weights", inverting, "--json")
    for status in ("done", "skipped"):
        told = restort(*words)
        files = json.loads(told.out)["files"]
        assert [(one["status"], one["precision"]) for one in files] == [(status, "bf16"), (status, "fp32")]
    assert len(np.unique(read(tmp_path / "out/b.png").pixels[0, :, 0])) == 512


def test_tensorrt_builds_no_engine_that_nobody_asked_for(
    inverting: Path, made: list[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = False
    monkeypatch.setattr("restort.backends.tensorrt.availability.is_ready", lambda weights, precision: ready)
    monkeypatch.setattr(CoarseRunner, "name", "tensorrt")
    said: list[str] = []
    with package.load(inverting, notify=said.append) as model:
        model(ramp(np.uint16))
        model(ramp(np.uint16))
    assert len(made) == 1 and sum("steps in smooth shades" in line for line in said) == 1
    ready = True
    with package.load(inverting) as model:
        model(ramp(np.uint16))
    assert [runner.precision for runner in made] == ["bf16", "bf16", "fp32"]
