"""Frames of GIF, PNG and WebP: decoded as Pillow composes them, encoded so that Pillow and libvips read them back."""

from __future__ import annotations

import dataclasses
import io
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restort.imaging import decode
from restort.imaging.animation_encode import encode_animation, holds_frames
from restort.imaging.decode import read
from restort.imaging.picture import Picture
from restort.imaging.vips import vips
from restort.utils.array_types import Array
from tests.imaging.test_limits import webp

SIZE = (37, 24)  # odd, with even and odd places of changes
DELAYS = (40, 100, 70, 2000)


def moving(alpha: bool = False) -> list[Image.Image]:
    """Four frames: a square that moves over a ramp; the third equals the second."""
    ramp = np.tile(np.linspace(0, 255, SIZE[0], dtype=np.uint8), (SIZE[1], 1))
    frames = []
    for place in (1, 8, 8, 17):
        pixels = np.dstack([ramp, ramp[:, ::-1], np.full_like(ramp, 90)])
        pixels[3:11, place : place + 9] = (250, 20, 10)
        if alpha:
            shown = np.full_like(ramp, 255)
            shown[5:9, place : place + 5] = 0
            pixels = np.dstack([pixels, shown])
        frames.append(Image.fromarray(pixels))
    return frames


def saved(path: Path, frames: list[Image.Image], **options: Any) -> Path:
    options = {"duration": list(DELAYS), "loop": 0, "lossless": True, **options}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def shown(path: Path | io.BytesIO) -> tuple[list[Array], list[float], Any]:
    """The frames of a file as Pillow composes them, their times, and its loop count."""
    with Image.open(path) as file:
        frames, times = [], []
        for index in range(file.n_frames):
            file.seek(index)
            frames.append(np.asarray(file.convert("RGBA")))
            times.append(file.info.get("duration"))
        return frames, times, file.info.get("loop")


def pictures(source: Picture) -> list[Picture]:
    assert source.animation is not None
    return [
        dataclasses.replace(source, pixels=pixels, alpha=alpha, animation=None)
        for pixels, alpha in source.animation.frames()
    ]


def encoded(path: Path, source: Picture, quality: int = 100) -> Path:
    assert source.animation is not None
    delays, plays = source.animation.delays, source.animation.plays
    path.write_bytes(encode_animation(path, pictures(source), delays, plays, quality)[0])
    return path


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("target", ["o.png", "o.webp"])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif"])
def test_all_frames_and_times_arrive(tmp_path: Path, name: str, target: str, alpha: bool) -> None:
    # Pillow joins equal frames when it writes them.
    frames = moving(alpha)
    source = read(saved(tmp_path / name, frames), all_frames=True)
    before, times, _ = shown(tmp_path / name)
    assert source.notes == () and source.animation is not None and source.animation.plays == 0
    assert sum(times) == sum(DELAYS)
    after, kept, loop = shown(encoded(tmp_path / target, source))
    assert kept == pytest.approx(times) and loop == 0
    assert len(after) == len(before) >= 3
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old[..., 3], new[..., 3])
        assert np.array_equal(old[..., :3][old[..., 3] > 0], new[..., :3][old[..., 3] > 0])
    assert any(frame[..., 3].min() == 0 for frame in after) == alpha


@pytest.mark.parametrize("target", ["o.png", "o.webp"])
def test_libvips_reads_the_frames_too(tmp_path: Path, target: str) -> None:
    source = read(saved(tmp_path / "a.webp", moving()), all_frames=True)
    path = encoded(tmp_path / target, source)
    if target.endswith("png"):  # of which libvips shows the first frame
        image = vips().Image.new_from_file(str(path))
        assert np.array_equal(image.numpy()[..., :3], source.pixels)
        return
    roll = vips().Image.new_from_file(str(path), n=-1)
    assert source.animation is not None
    assert roll.get("delay") == list(source.animation.delays) == [40, 170, 2000] and roll.get("loop") == 0
    tall = np.concatenate([picture.pixels for picture in pictures(source)])
    assert np.array_equal(roll.numpy()[..., :3], tall)


@pytest.mark.parametrize("target", ["o.png", "o.webp"])
def test_only_what_changes_is_encoded(tmp_path: Path, target: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    other = noise.copy()
    other[30, 31] += 1
    path = tmp_path / target
    still = len(encode_animation(path, [Picture(noise)], (10,), 0, 100)[0])
    data, _ = encode_animation(path, [Picture(p) for p in (noise, other, other)], (10, 20, 30), 0, 100)
    assert len(data) < still + 800
    frames, times, _ = shown(io.BytesIO(data))
    assert times == [10, 20, 30]
    assert [bool((frame[..., :3] == other).all()) for frame in frames] == [False, True, True]


@pytest.mark.parametrize("loop, plays", [(None, 1), (0, 0), (2, 3)])
def test_gif_counts_repetitions(tmp_path: Path, loop: int | None, plays: int) -> None:
    frames = moving()
    options = {} if loop is None else {"loop": loop}
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50, **options)
    source = read(tmp_path / "a.gif", all_frames=True)
    assert source.animation is not None and source.animation.plays == plays
    for target in ("o.png", "o.webp"):
        assert shown(encoded(tmp_path / target, source))[2] == plays


def test_a_still_picture_before_the_animation_is_none_of_its_frames(tmp_path: Path) -> None:
    frames = moving()
    path = saved(tmp_path / "a.png", frames, default_image=True, duration=[40, 100, 70])
    source = read(path, all_frames=True)
    assert source.animation is not None
    first, _ = next(source.animation.frames())
    assert np.array_equal(first, np.asarray(frames[1]))


def test_gray_stays_gray_and_metadata_arrives(tmp_path: Path) -> None:
    frames = [image.convert("L") for image in moving()]
    exif = Image.Exif()
    exif[0x10F] = "ACME"
    source = read(saved(tmp_path / "a.png", frames, exif=exif), all_frames=True)
    for target in ("o.png", "o.webp"):
        with Image.open(encoded(tmp_path / target, source)) as image:
            assert image.mode == ("L" if target == "o.png" else "RGB")
            assert image.getexif()[0x10F] == "ACME"


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_frames_are_turned_upright(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    source = read(saved(tmp_path / f"a.{kind}", moving(), exif=exif), all_frames=True)
    frames = pictures(source)
    assert frames[0].pixels.shape == source.pixels.shape
    turned = [np.rot90(frame[..., :3], -1) for frame in shown(tmp_path / f"a.{kind}")[0]]
    assert all(np.array_equal(a.pixels, b) for a, b in zip(frames, turned, strict=True))
    with Image.open(encoded(tmp_path / f"o.{kind}", source)) as image:
        assert image.size == SIZE[::-1] and image.getexif()[0x112] == 1


@pytest.mark.parametrize("delay", [0, 10, 1000 / 30, 65_535, 100_000, 70_000_000])
def test_times_of_any_length(delay: float) -> None:
    frame = Picture(np.zeros((4, 4, 3), np.uint8))
    data, _ = encode_animation(Path("o.png"), [frame, frame], (delay, delay), 0, 95)
    times = shown(io.BytesIO(data))[1]
    assert times == pytest.approx([min(delay, 65_535_000)] * 2, rel=1e-3)


def test_fractions_of_milliseconds_do_not_add_up_in_webp() -> None:
    frame = Picture(np.zeros((4, 4, 3), np.uint8))
    data, _ = encode_animation(Path("o.webp"), [frame] * 30, (1000 / 30,) * 30, 0, 95)
    times = shown(io.BytesIO(data))[1]
    assert sum(times) == 1000 and set(times) == {33, 34}


def test_without_asking_the_first_is_read(tmp_path: Path) -> None:
    source = read(saved(tmp_path / "a.gif", moving()))
    assert source.animation is None and len(source.notes) == 1


def test_what_is_too_much_leaves_the_first_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.webp", moving())
    pixels = SIZE[0] * SIZE[1]
    source = read(path, max_pixels=2 * pixels, all_frames=True)
    assert source.animation is None and "raise --max-pixels" in source.notes[0]
    monkeypatch.setattr(decode, "MAX_FRAMES", 2)
    source = read(path, all_frames=True)
    assert source.notes == ("only the first of 3 frames was read (all only of up to 2)",)
    monkeypatch.setattr(decode, "MAX_FRAMES", 3)
    monkeypatch.setattr(decode, "MOST_PIXELS", pixels - 1)
    assert "million pixels each" in read(path, all_frames=True).notes[0]


def test_thousands_of_frames_are_still_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(webp(60_000))
    begin = time.monotonic()
    source = read(tmp_path / "a.webp", all_frames=True)
    assert time.monotonic() - begin < 5
    assert source.animation is None and "60000" in source.notes[0]


def test_a_damaged_frame_leaves_the_first(tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path / "a.png", moving()).read_bytes())
    place = data.index(b"fdAT")
    length = struct.unpack_from(">I", data, place - 4)[0]
    data[place + 8 : place + 4 + length] = bytes(length - 4)
    (tmp_path / "a.png").write_bytes(data)
    source = read(tmp_path / "a.png", all_frames=True)
    assert source.animation is None
    assert "another one is damaged" in source.notes[0]


def test_a_gif_frame_beyond_the_edges(tmp_path: Path) -> None:
    """Pillow would enlarge the picture."""
    data = bytearray(saved(tmp_path / "a.gif", moving()).read_bytes())
    place = data.index(b"!\xf9\4", data.index(b"!\xf9\4") + 1) + 8  # the second frame's descriptor
    assert data[place] == ord(",")
    struct.pack_into("<HH", data, place + 5, 300, 300)
    (tmp_path / "a.gif").write_bytes(data)
    source = read(tmp_path / "a.gif", all_frames=True)
    assert source.animation is None and "pixels instead of 37 x 24" in source.notes[0]


def test_an_animation_of_one_frame_is_a_still_picture(tmp_path: Path) -> None:
    frame = read(saved(tmp_path / "a.png", moving()))
    path = tmp_path / "one.png"
    path.write_bytes(encode_animation(path, [frame], (50,), 0, 95)[0])
    source = read(path, all_frames=True)
    assert source.animation is None and source.notes == ()
    assert np.array_equal(source.pixels, frame.pixels)


@pytest.mark.parametrize(
    "name, holds", [("a.png", True), ("a.webp", True), ("a.jpg", False), ("a.tif", False)]
)
def test_formats_that_hold_frames(name: str, holds: bool) -> None:
    assert holds_frames(Path(name)) is holds
