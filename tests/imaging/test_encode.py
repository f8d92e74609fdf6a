"""Writing: depth, alpha, profile and metadata arrive; nothing half-written is ever left."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restort.errors import RestortError, UsageError
from restort.imaging import colour
from restort.imaging.decode import read
from restort.imaging.encode import check_output, to_8_bit, write
from restort.imaging.picture import Picture
from restort.imaging.vips import vips

RNG = np.random.default_rng(11)
GRAY = RNG.integers(0, 256, (9, 14, 1), np.uint8)
RGB = RNG.integers(0, 256, (9, 14, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 14), np.uint8)
RGB16 = RNG.integers(0, 65536, (9, 14, 3), np.uint16)
ALPHA16 = RNG.integers(0, 65536, (9, 14), np.uint16)
SMOOTH = np.full((32, 40, 3), (200, 100, 50), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp"])
@pytest.mark.parametrize("pixels", [GRAY, RGB], ids=["gray", "colour"])
@pytest.mark.parametrize("alpha", [None, ALPHA], ids=["opaque", "alpha"])
def test_lossless(tmp_path: Path, suffix: str, pixels: np.ndarray, alpha: np.ndarray | None) -> None:
    path = tmp_path / ("picture" + suffix)
    if suffix == ".bmp" and alpha is not None:
        pytest.skip("BMP holds no alpha")
    assert write(path, Picture(pixels, alpha)) == ()
    again = read(path)
    expected = pixels
    if suffix == ".bmp" and again.channels == 3:
        expected = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    assert np.array_equal(again.pixels, expected)
    assert (again.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(again.alpha, alpha)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("alpha", [None, ALPHA16], ids=["opaque", "alpha"])
def test_16_bit_stays(tmp_path: Path, suffix: str, alpha: np.ndarray | None) -> None:
    path = tmp_path / ("picture" + suffix)
    assert write(path, Picture(RGB16, alpha)) == ()
    again = read(path)
    assert np.array_equal(again.pixels, RGB16)
    assert alpha is None or np.array_equal(again.alpha, alpha)


@pytest.mark.parametrize("suffix", [".webp", ".bmp"])
def test_16_bit_is_rounded_where_it_must(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("picture" + suffix)
    (note,) = write(path, Picture(RGB16), quality=100)
    assert "rounded to 8" in note
    assert np.array_equal(read(path).pixels, np.rint(RGB16 / 257).astype(np.uint8))


def test_to_8_bit_is_the_nearest_value() -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bit(every), np.rint(every / 257).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_a_quality_of_100_is_lossless(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("picture" + suffix)
    write(path, Picture(RGB, ALPHA), quality=100)
    again = read(path)
    assert np.array_equal(again.pixels, RGB)
    assert again.alpha is not None and np.array_equal(again.alpha, ALPHA)


def test_16_bit_avif_keeps_12(tmp_path: Path) -> None:
    pixels = np.full((32, 32, 3), (30_000, 20_000, 10_000), np.uint16)
    write(tmp_path / "a.avif", Picture(pixels))
    again = read(tmp_path / "a.avif")
    assert again.bits == 16
    assert np.abs(again.pixels.astype(int) - pixels).max() < 200


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jfif", ".webp", ".avif"])
def test_lossy(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("picture" + suffix)
    write(path, Picture(SMOOTH))
    assert np.abs(read(path).pixels.astype(int) - SMOOTH).max() <= 2


def test_jpeg_is_4_4_4_and_quality_counts(tmp_path: Path) -> None:
    noisy = Picture(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    for quality in (50, 95):
        write(tmp_path / f"{quality}.jpg", noisy, quality=quality)
    assert (tmp_path / "95.jpg").stat().st_size > 1.5 * (tmp_path / "50.jpg").stat().st_size
    assert Image.open(tmp_path / "95.jpg").layer[0][1:3] == (1, 1)
    with pytest.raises(UsageError, match="quality of 0"):
        write(tmp_path / "0.jpg", noisy, quality=0)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_laid_over_white_where_it_must(tmp_path: Path, suffix: str) -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    alpha = np.full((32, 32), 255, np.uint8)
    assert write(tmp_path / f"opaque{suffix}", Picture(black, alpha)) == ()
    assert read(tmp_path / f"opaque{suffix}").pixels.max() < 3
    alpha[:, 16:] = 0
    (note,) = write(tmp_path / f"half{suffix}", Picture(black, alpha))
    assert note.startswith("alpha was laid over white: ")
    assert read(tmp_path / f"half{suffix}").pixels[:, 24:].min() > 250


# --- what travels -------------------------------------------------------------------------------------------


def camera_jpeg(orientation: int = 6) -> bytes:
    """A JPEG with EXIF (maker, time, place, size), a thumbnail, XMP, a profile and a resolution."""
    pyvips = vips()
    exif = Image.Exif()
    exif[0x010F], exif[0x8298], exif[0x0112] = "Maker", "(c) someone", orientation
    details = exif.get_ifd(0x8769)
    details[0x9003], details[0xA002], details[0xA003] = "2020:01:02 03:04:05", 40, 32
    exif.get_ifd(0x8825)[1] = "N"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(
        buffer,
        "JPEG",
        exif=exif,
        xmp=xmp,
        dpi=(300, 300),
        icc_profile=bytes(pyvips.Operation.call("profile_load", "p3")),
    )
    image = pyvips.Image.jpegload_buffer(buffer.getvalue()).copy()
    small = io.BytesIO()
    Image.fromarray(SMOOTH[::4, ::4]).save(small, "JPEG")
    image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", small.getvalue())
    return bytes(image.jpegsave_buffer())


def enlarged(picture: Picture, scale: int = 2) -> Picture:
    x = picture.to_unit(3)
    return picture.from_unit(x.repeat(scale, 2).repeat(scale, 3))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_metadata_travels_and_is_true(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "camera.jpg"
    source.write_bytes(camera_jpeg())
    assert "jpeg-thumbnail-data" in vips().Image.jpegload(str(source)).get_fields()
    target = tmp_path / ("out" + suffix)
    write(target, enlarged(read(source)))
    image = Image.open(target)
    assert image.size == (64, 80)  # turned by 90 degrees, then enlarged
    exif = image.getexif()
    assert exif[0x010F] == "Maker"
    assert exif[0x8298].strip() == "(c) someone"
    assert exif.get(0x0112, 1) == 1
    details = exif.get_ifd(0x8769)
    assert details[0x9003] == "2020:01:02 03:04:05"
    assert (details[0xA002], details[0xA003]) == (64, 80)
    assert exif.get_ifd(0x8825)[1] == "N"
    assert not exif.get_ifd(1)  # the second directory is the thumbnail
    assert b"\xff\xd8\xff" not in (read(target).exif or b""), "nor are its bytes left behind"
    again = read(target)
    assert again.icc == bytes(vips().Operation.call("profile_load", "p3"))
    assert again.xmp is not None
    assert b'tiff:Orientation="1"' in again.xmp


def test_what_tiff_carries(tmp_path: Path) -> None:
    source = tmp_path / "camera.jpg"
    source.write_bytes(camera_jpeg())
    picture = enlarged(read(source))
    assert write(tmp_path / "out.tif", picture) == ()
    tags = Image.open(tmp_path / "out.tif").getexif()
    assert (tags[0x010F], tags[0x8298].strip(), tags.get(0x0112, 1)) == ("Maker", "(c) someone", 1)
    details = tags.get_ifd(0x8769)
    assert details[0x9003] == "2020:01:02 03:04:05"
    assert (details[0xA002], details[0xA003]) == (64, 80)
    assert tags.get_ifd(0x8825)[1] == "N"
    again = read(tmp_path / "out.tif")
    assert np.array_equal(again.pixels, picture.pixels)
    assert (again.icc, again.xmp) == (picture.icc, picture.xmp)
    assert again.resolution == pytest.approx((300 / 25.4,) * 2, rel=1e-3)


def test_bmp_gets_srgb_colours(tmp_path: Path) -> None:
    profile = bytes(vips().Operation.call("profile_load", "p3"))
    notes = write(tmp_path / "out.bmp", Picture(SMOOTH, icc=profile))
    assert notes == ("colours were converted to sRGB: BMP cannot hold the profile",)
    assert read(tmp_path / "out.bmp").pixels[0, 0, 0] > 205  # the red of Display P3 lies further out
    assert write(tmp_path / "srgb.bmp", Picture(SMOOTH, icc=colour.srgb_profile())) == ()
    assert np.array_equal(read(tmp_path / "srgb.bmp").pixels, SMOOTH)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_resolution(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / ("out" + suffix), Picture(RGB, resolution=(10.0, 20.0)))
    assert read(tmp_path / ("out" + suffix)).resolution == pytest.approx((10, 20), rel=0.01)


def test_no_exif_is_made_up(tmp_path: Path) -> None:
    for name in ("out.jpg", "out.png", "out.webp"):
        write(tmp_path / name, Picture(RGB))
        assert read(tmp_path / name).exif is None


def test_malformed_exif_does_no_harm(tmp_path: Path) -> None:
    for exif in (b"garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        write(tmp_path / "out.jpg", Picture(RGB, exif=exif), overwrite=True)
        assert read(tmp_path / "out.jpg").width == 14


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", "a.heic"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"use one of \.png, \.jpg"):
        write(tmp_path / name, Picture(RGB))
    assert list(tmp_path.iterdir()) == []
    assert check_output("b.JPG") == "jpeg"


def test_existing_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "there.png"
    path.write_text("precious")
    with pytest.raises(RestortError, match="already exists; use --overwrite"):
        write(path, Picture(RGB))
    assert path.read_text() == "precious"
    write(path, Picture(RGB), overwrite=True, sync=True)
    assert np.array_equal(read(path).pixels, RGB)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there.png"]


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "race.png"
    fsync = os.fsync

    def late(descriptor: int) -> None:
        path.write_text("precious")
        fsync(descriptor)

    monkeypatch.setattr("restort.utils.files.os.fsync", late)
    with pytest.raises(RestortError, match="already exists"):
        write(path, Picture(RGB), sync=True)
    assert path.read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["race.png"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("restort.utils.files.os.link", refuse)
    write(tmp_path / "out.png", Picture(RGB))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_folders_are_made_and_refused(tmp_path: Path) -> None:
    write(tmp_path / "new" / "deep" / "out.png", Picture(RGB))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RestortError, match="it is a folder"):
        write(tmp_path / "folder.png", Picture(RGB), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RestortError, match="a part of its path is a file"):
        write(tmp_path / "file" / "out.png", Picture(RGB))
    with pytest.raises(RestortError, match="the name is too long"):
        write(tmp_path / ("x" * 300 + ".png"), Picture(RGB))
    assert not list(tmp_path.glob(".restort-*"))


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    write(tmp_path / "out.png", Picture(RGB))
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "out.png").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65_501), (".webp", 16_384)])
def test_larger_than_the_format(tmp_path: Path, suffix: str, side: int) -> None:
    with pytest.raises(RestortError, match=r"holds at most .* use .tif"):
        write(tmp_path / ("out" + suffix), Picture(np.zeros((1, side, 1), np.uint8)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="no resource limits there")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_full_disk(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stands in for the full disk: the writing fails half-way."""
    code = f"""
        import resource, signal, sys
        import numpy as np
        from restort.errors import RestortError
        from restort.imaging.picture import Picture
        from restort.imaging.encode import write
        pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            write("{tmp_path}/out{suffix}", Picture(pixels))
        except RestortError as error:
            sys.exit(str(error))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip().endswith("the disk is full; free some space or use another folder")
    assert "\n" not in run.stderr.strip()
    assert list(tmp_path.iterdir()) == []


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("restort.utils.files.os.fsync", full)
    with pytest.raises(RestortError, match="the disk is full"):
        write(tmp_path / "out.png", Picture(RGB), sync=True)
    assert list(tmp_path.iterdir()) == []
