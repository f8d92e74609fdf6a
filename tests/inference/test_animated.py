"""Animations through the pipeline: every frame restored, in files and folders, or the first with a note."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restort
from restort.imaging.folder import collect
from restort.inference.batch import Options, restore_files
from restort.inference.progress import Lines
from restort.utils.array_types import Array
from tests.fakes.fake_backend import ELAN, create, write_weights

HELD = 3  # frames from this one on are equal


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> restort.Model:
    """A stand-in that repeats each pixel."""
    monkeypatch.setattr("restort.backends.registry.create", create, raising=False)
    return restort.load(write_weights(tmp_path / "x2.safetensors", ELAN[2]))


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """in/a.png, an animation of five frames written by the package's own encoder, which keeps equal ones."""
    from restort.imaging.animation_encode import encode_animation
    from restort.imaging.picture import Picture

    values = [np.full((20, 30, 3), 10 * min(i, HELD), np.uint8) for i in range(5)]
    for i, pixels in enumerate(values):
        pixels[4:9, 3 : 4 + min(i, HELD)] = 200
    path = tmp_path / "in/a.png"
    path.parent.mkdir()
    data = encode_animation(path, map(Picture, values), (10, 20, 30, 40, 50), 2, 95)[0]
    path.write_bytes(data)
    return path


def frames_of(path: Path) -> tuple[list[Array], list[float], int]:
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        frames, times = [], []
        for index in range(file.n_frames):
            file.seek(index)
            frames.append(np.asarray(file.convert("RGB")))
            times.append(file.info["duration"])
        return frames, times, file.info["loop"]


@pytest.mark.parametrize("name", ["o.png", "o.webp"])
def test_every_frame_is_restored_once(model: restort.Model, moving: Path, tmp_path: Path, name: str) -> None:
    seen: list[tuple[int, int]] = []
    done = model.restore_file(moving, tmp_path / name, quality=100, progress=lambda *step: seen.append(step))
    assert done.notes == () and done.size == (30, 20) and done.result_size == (60, 40)
    before, after = frames_of(moving), frames_of(tmp_path / name)
    assert after[1:] == before[1:] == ([10, 20, 30, 40, 50], 2)
    for old, new in zip(before[0], after[0], strict=True):
        assert np.array_equal(old.repeat(2, 0).repeat(2, 1), new)
    assert seen == [(i + 1, 5) for i in range(HELD + 1)]  # the last two frames stand still


def test_formats_without_frames_get_the_first(model: restort.Model, moving: Path, tmp_path: Path) -> None:
    done = model.restore_file(moving, tmp_path / "o.jpg")
    assert done.notes == (
        "only the first of 5 frames was restored: JPEG cannot hold them; use .png or .webp",
    )
    with Image.open(tmp_path / "o.jpg") as image:
        assert image.size == (60, 40) and np.abs(np.asarray(image)[30, 50].astype(int)).max() <= 2


def test_an_existing_target_is_kept(model: restort.Model, moving: Path, tmp_path: Path) -> None:
    (tmp_path / "o.png").write_bytes(b"mine")
    with pytest.raises(restort.RestortError, match="--overwrite"):
        model.restore_file(moving, tmp_path / "o.png")
    assert (tmp_path / "o.png").read_bytes() == b"mine"


def test_in_a_folder_gif_becomes_an_animated_png(model: restort.Model, moving: Path, tmp_path: Path) -> None:
    with Image.open(moving) as file:
        file.save(moving.with_name("b.gif"), save_all=True)
    out = tmp_path / "out"
    for status in ("done", "skipped"):
        jobs = collect([moving.parent], out)
        summary = restore_files(model, jobs, out, Options(), Lines(2, quiet=True))
        assert [result.status for result in summary.files] == [status, status]
    with Image.open(out / "b.png") as made, Image.open(moving.with_name("b.gif")) as source:
        assert made.size == (60, 40) and made.n_frames == source.n_frames > 1
