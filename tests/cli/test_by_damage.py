"""`restort upscale` without a model: the photo model for damaged files, the usual one for the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import restort as package
from restort.imaging.decode import read
from tests.fakes.fake_backend import ELAN, create, write_weights

PHOTOGRAPH = Path(__file__).resolve().parents[2] / "tests/weights/kitten_small.png"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two fake models for x4, one for x2; the list of those opened."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    write_weights(
        folder / "usual.safetensors", ELAN[4], metadata={"tasks": "upscale", "default_for": "upscale"}
    )
    write_weights(folder / "photo.safetensors", ELAN[4], 1, {"tasks": "upscale", "input": "damaged"})
    write_weights(
        folder / "twice.safetensors", ELAN[2], metadata={"tasks": "upscale", "default_for": "upscale"}
    )
    names: list[str] = []

    def noted(weights: Any, *arguments: Any, **options: Any) -> Any:
        names.append(weights.path.stem)
        return create(weights, *arguments, **options)

    # first: importing it copies the name from the catalogue
    monkeypatch.setattr("restort.weights.download.WEIGHTS_FOLDER", folder)
    monkeypatch.setattr("restort.weights.catalogue.WEIGHTS_FOLDER", folder)
    monkeypatch.setattr("restort.backends.registry.create", noted)
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    return names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    photo = Image.open(PHOTOGRAPH).convert("RGB")
    photo.save(folder / "a.jpg", quality=80)
    photo.save(folder / "b.png")
    photo.crop((0, 0, 200, 180)).save(folder / "c.jpg")
    values = np.asarray(photo) + np.random.default_rng(0).normal(0, 6, (photo.height, photo.width, 3))
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(folder / "d.png")
    return folder


EXPECTED = {"a.jpg": "photo", "b.png": "usual", "c.jpg": "photo", "d.png": "photo"}


def report(told: Any) -> tuple[dict[str, str], dict[str, str]]:
    files = json.loads(told.out)["files"]
    return (
        {Path(file["source"]).name: file["model"] for file in files},
        {Path(file["source"]).name: file["status"] for file in files},
    )


def test_a_mixed_folder(restort: Any, opened: list[str], photos: Path, tmp_path: Path) -> None:
    told = restort("upscale", photos, "-o", tmp_path / "out", "--json")
    models, states = report(told)
    assert told.status == 0 and models == EXPECTED and set(states.values()) == {"done"}
    assert sorted(opened) == ["photo", "usual"]
    line = (
        "3 files by photo (compressed with loss, noisy), 1 file by usual (undamaged); --model NAME overrides"
    )
    assert f"restort: upscale: {line}" in told.lines
    assert "restort: 4 done of 4" in told.err and "[4/4]" in told.err
    summary = json.loads(told.out)
    assert summary["model"] is None and [each["name"] for each in summary["models"]] == ["photo", "usual"]
    source = read(photos / "b.png").pixels
    assert np.array_equal(read(tmp_path / "out/b.png").pixels, source.repeat(4, 0).repeat(4, 1))


def test_a_second_run_has_nothing_to_do(
    restort: Any, opened: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restort("upscale", photos, "-o", tmp_path / "out", "--quiet").status == 0

    def looked(image: object) -> None:
        raise AssertionError(f"{image} is looked at again")

    monkeypatch.setattr("restort.inference.damage.damage_of", looked)
    models, states = report(restort("upscale", photos, "-o", tmp_path / "out", "--json"))
    assert models == EXPECTED and set(states.values()) == {"skipped"}


def test_a_changed_file_is_looked_at_again(
    restort: Any, opened: list[str], photos: Path, tmp_path: Path
) -> None:
    assert restort("upscale", photos, "-o", tmp_path / "out", "--quiet").status == 0
    (photos / "d.png").write_bytes((photos / "b.png").read_bytes())
    models, states = report(restort("upscale", photos, "-o", tmp_path / "out", "--json"))
    assert models == EXPECTED | {"d.png": "usual"}
    assert states == {"a.jpg": "skipped", "b.png": "skipped", "c.jpg": "skipped", "d.png": "done"}


def test_a_named_model_takes_all(restort: Any, opened: list[str], photos: Path, tmp_path: Path) -> None:
    told = restort("upscale", photos, "-o", tmp_path / "out", "--model", "usual", "--json")
    assert opened == ["usual"] and set(report(told)[0].values()) == {"usual"}
    assert json.loads(told.out)["model"]["name"] == "usual" and "overrides" not in told.err


def test_a_scale_without_a_photo_model(restort: Any, opened: list[str], photos: Path, tmp_path: Path) -> None:
    told = restort("upscale", photos, "-o", tmp_path / "out", "--scale", "2", "--json")
    assert opened == ["twice"] and set(report(told)[0].values()) == {"twice"}
    assert "3 files damaged (compressed with loss, noisy)" in told.err
    assert "`restort dejpeg` or `restort denoise` before helps" in told.err


def test_a_file_that_cannot_be_read_fails_in_its_turn(
    restort: Any, opened: list[str], photos: Path, tmp_path: Path
) -> None:
    (photos / "e.png").write_bytes((photos / "b.png").read_bytes()[:3000])
    told = restort("upscale", photos, "-o", tmp_path / "out", "--json")
    assert told.status == 1 and report(told)[1]["e.png"] == "failed"
    assert json.loads(told.out)["totals"]["done"] == 4


def test_restore_by_scale(opened: list[str], photos: Path, tmp_path: Path) -> None:
    package.restore(photos / "a.jpg", tmp_path / "a.png", scale=4)
    package.restore(photos / "b.png", tmp_path / "b.png", scale=4)
    enlarged = package.restore(np.asarray(Image.open(photos / "d.png")), scale=4)
    assert opened == ["photo", "usual", "photo"]
    assert enlarged.shape[0] == 4 * read(photos / "d.png").pixels.shape[0]
    with pytest.raises(package.UsageError, match="a model, or a scale"):
        package.restore(enlarged)
    with pytest.raises(package.UsageError, match="either a model or a scale"):
        package.restore(enlarged, model="usual", scale=4)
