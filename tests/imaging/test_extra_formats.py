"""HEIC, JPEG XL and camera raw: pixels, depth, orientation and metadata; the message without the extra."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restort.errors import RestortError
from restort.imaging import extra_formats, formats
from restort.imaging.decode import check_input, read
from restort.imaging.folder import collect


@pytest.fixture
def smooth() -> np.ndarray:
    """(48, 64, 3) uint8: gradients, which lossy codecs keep within a few steps."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, 255 - x * 2], 2).astype(np.uint8)


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"the extra 'formats' ({name}) is not installed")


# --- HEIC -------------------------------------------------------------------------------------------------


def heic(image: Image.Image, path: Path, **options: Any) -> Path:
    library("pillow_heif").from_pillow(image).save(path, quality=95, chroma=444, **options)
    return path


def test_heic_comes_with_its_metadata(tmp_path: Path, smooth: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    icc = Image.new("RGB", (1, 1)).info.get("icc_profile")
    path = heic(Image.fromarray(smooth), tmp_path / "a.heic", exif=exif.tobytes(), icc_profile=icc)
    picture = read(path)
    assert picture.format == "heic" and picture.bits == 8 and picture.alpha is None
    assert np.abs(picture.pixels.astype(int) - smooth).max() <= 6
    assert picture.exif is not None and b"a camera" in picture.exif
    check_input(path)


def test_heic_is_upright(tmp_path: Path, smooth: np.ndarray) -> None:
    """Phones store a rotation; the library applies it, and EXIF must not do so again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read(heic(Image.fromarray(smooth), tmp_path / "a.heic", exif=exif.tobytes()))
    assert picture.pixels.shape == (64, 48, 3)
    assert np.abs(picture.pixels.astype(int) - np.rot90(smooth, -1)).max() <= 6
    kept = Image.Exif()
    kept.load(picture.exif or b"")
    assert kept.get(0x0112, 1) == 1


def test_ten_bits_fill_sixteen(tmp_path: Path) -> None:
    heif = library("pillow_heif")
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None], 48, 0).repeat(3, 2)
    heif.from_bytes("RGB;16", (64, 48), ramp.tobytes()).save(tmp_path / "a.heic", quality=-1)
    picture = read(tmp_path / "a.heic")
    assert picture.bits == 16
    assert picture.pixels.max() == 65535 and picture.pixels.min() == 0
    assert np.abs(picture.pixels.astype(int) - ramp).max() < 65535 / 250


def test_heic_with_alpha(tmp_path: Path, smooth: np.ndarray) -> None:
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:20] = 0
    picture = read(heic(Image.fromarray(np.concatenate([smooth, alpha], 2)), tmp_path / "a.heif"))
    assert picture.alpha is not None
    assert picture.alpha[40, 30] > 250 and picture.alpha[4, 30] < 5


# --- JPEG XL ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_jpeg_xl_without_loss(tmp_path: Path, smooth: np.ndarray, mode: str) -> None:
    library("pillow_jxl")
    image = Image.fromarray(smooth).convert(mode)
    image.save(tmp_path / "a.jxl", lossless=True)
    picture = read(tmp_path / "a.jxl")
    joined = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    assert picture.format == "jxl"
    assert np.array_equal(joined, np.asarray(image).reshape(joined.shape))


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700))
def test_the_size_in_a_jpeg_xl_header(width: int, height: int) -> None:
    library("pillow_jxl")
    for size in ((width, height), (height, height), (height * 16 // 9 or 1, height)):
        buffer = io.BytesIO()
        Image.new("L", size).save(buffer, "JXL", effort=1)
        assert extra_formats.jxl_size(buffer.getvalue()) == size


def test_a_jpeg_xl_that_claims_too_much_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jxl = library("pillow_jxl")
    Image.new("L", (300, 200)).save(tmp_path / "a.jxl")
    monkeypatch.setattr(jxl, "Decoder", lambda **_: pytest.fail("decoded"))
    with pytest.raises(RestortError, match="claims 300 x 200 pixels, more than the limit"):
        read(tmp_path / "a.jxl", max_pixels=1000)


# --- camera raw -------------------------------------------------------------------------------------------


def dng(path: Path, width: int = 96, height: int = 64) -> Path:
    """A small uncompressed DNG, RGGB, gray: the left half darker than the right one."""
    light = np.where(np.arange(width) < width // 2, 4000, 20000).astype("<u2")
    body = np.tile(light, (height, 1)).tobytes()
    matrix = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
    entries: list[tuple[int, int, int, bytes]] = [
        (254, 4, 1, struct.pack("<I", 0)),
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 1, struct.pack("<HH", 16, 0)),
        (259, 3, 1, struct.pack("<HH", 1, 0)),
        (262, 3, 1, struct.pack("<HH", 32803, 0)),
        (271, 2, 5, b"Test\0"),
        (272, 2, 5, b"Test\0"),
        (273, 4, 1, b""),
        (274, 3, 1, struct.pack("<HH", 1, 0)),
        (277, 3, 1, struct.pack("<HH", 1, 0)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", len(body))),
        (33421, 3, 2, struct.pack("<HH", 2, 2)),
        (33422, 1, 4, bytes([0, 1, 1, 2])),
        (50706, 1, 4, bytes([1, 4, 0, 0])),
        (50708, 2, 5, b"Test\0"),
        (50717, 4, 1, struct.pack("<I", 65535)),
        (50721, 10, 9, struct.pack("<18i", *matrix)),
        (50728, 5, 3, struct.pack("<6I", 1, 1, 1, 1, 1, 1)),
    ]
    place = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    table = b""
    for tag, kind, count, value in entries:
        if tag == 273:
            longer = sum(len(v) + len(v) % 2 for *_, v in entries if len(v) > 4)
            value = struct.pack("<I", place + longer)
        if len(value) > 4:
            table += struct.pack("<HHII", tag, kind, count, place + len(extra))
            extra += value + bytes(len(value) % 2)
        else:
            table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    path.write_bytes(head + table + bytes(4) + extra + body)
    return path


def test_raw_is_developed_to_sixteen_bits(tmp_path: Path) -> None:
    library("rawpy")
    picture = read(dng(tmp_path / "a.dng"))
    assert picture.format == "raw" and picture.bits == 16 and picture.pixels.shape == (64, 96, 3)
    left, right = picture.pixels[32, 20].astype(int), picture.pixels[32, 80].astype(int)
    assert (right > left + 5000).all()
    assert np.ptp(right) < 4000, "gray stays gray by the camera's white balance"
    assert picture.notes == ("the raw picture was developed with the camera's white balance, in sRGB",)


# --- all --------------------------------------------------------------------------------------------------

HEADS = {
    "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
    "a.jxl": b"\xff\x0a" + bytes(40),
    "a.cr2": b"II*\0\x10\0\0\0CR" + bytes(40),
    "a.nef": b"II*\0\x08\0\0\0" + bytes(40),
}


@pytest.mark.parametrize("name", HEADS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HEADS[name])
    kind = formats.sniff(HEADS[name]) or "raw"
    library(extra_formats.MODULES["raw" if kind == "tiff" else kind])
    with pytest.raises(RestortError, match=r"its (HEIC|JPEG XL|camera raw) decoder fails"):
        read(path)


@pytest.mark.parametrize("name", HEADS)
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(extra_formats, "installed", lambda _: False)
    (tmp_path / name).write_bytes(HEADS[name])
    with pytest.raises(
        RestortError, match=r"needs the extra 'formats'; install it with: pip install.*or \w+ it"
    ):
        check_input(tmp_path / name)


def test_folders_and_the_formats_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_formats, "installed", lambda _: True)
    formats.read_suffixes.cache_clear()
    for name in ("a.HEIC", "b.jxl", "c.nef", "d.psd"):
        (tmp_path / name).write_bytes(b"")
    left_out: list[Path] = []
    jobs = collect([tmp_path], tmp_path / "out", left_out=left_out)
    assert [job.target.name for job in jobs] == ["a.jpg", "b.png", "c.tif"]
    assert [path.name for path in left_out] == ["d.psd"]
    monkeypatch.undo()
    formats.read_suffixes.cache_clear()
