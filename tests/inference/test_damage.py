"""What damage_of finds: formats by their header, blocks, noise and blur in pixels; nothing in undamaged pictures."""

from __future__ import annotations

import io
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from restort.errors import RestortError
from restort.imaging.picture import Picture
from restort.inference.damage import BLURRED, COMPRESSED, NOISY, damage_of
from tests.imaging.test_limits import CLAIMS, png, webp

PHOTOGRAPH = Path(__file__).resolve().parents[2] / "tests/weights/kitten_small.png"


@pytest.fixture
def photo() -> Image.Image:
    return Image.open(PHOTOGRAPH).convert("RGB")


def drawing() -> Image.Image:
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    for row in range(14):
        draw.text(
            (20, 12 + 16 * row), f"{row}: the quick brown fox jumps over the lazy dog", fill=(20, 20, 20)
        )
    draw.rectangle((240, 64, 303, 127), fill=(200, 40, 40))
    draw.ellipse((230, 140, 300, 200), outline=(0, 0, 200), width=3)
    return image


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    values = np.asarray(image) + np.random.default_rng(0).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.jpg", {}, COMPRESSED),
        ("a.webp", {}, COMPRESSED),
        ("with-profile.webp", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, COMPRESSED),
        ("a.avif", {}, COMPRESSED),
        ("jpeg.tif", {"compression": "jpeg"}, COMPRESSED),
        ("jpeg named.png", {"format": "JPEG"}, COMPRESSED),
        ("lossless.webp", {"lossless": True}, None),
        ("raw.tif", {}, None),
        ("deflate.tif", {"compression": "tiff_deflate"}, None),
        ("a[1].png", {}, None),
        ("a.bmp", {}, None),
    ],
)
def test_formats(
    photo: Image.Image, tmp_path: Path, name: str, options: dict[str, Any], expected: str | None
) -> None:
    photo.save(tmp_path / name, **options)
    assert damage_of(tmp_path / name) == expected


@pytest.mark.parametrize("quality", [40, 75, 90])
@pytest.mark.parametrize("offset", [0, 3])
def test_jpeg_saved_again(photo: Image.Image, tmp_path: Path, quality: int, offset: int) -> None:
    """An earlier JPEG is found from its grid, wherever a crop has moved it."""
    decoded = through_jpeg(photo, quality)
    decoded.crop((offset, offset, *decoded.size)).save(tmp_path / "a.png")
    assert damage_of(tmp_path / "a.png") == COMPRESSED


@pytest.mark.parametrize("sigma", [3, 5, 10])
def test_noise(photo: Image.Image, tmp_path: Path, sigma: int) -> None:
    noisy(photo, sigma).save(tmp_path / "a.png")
    assert damage_of(tmp_path / "a.png") == NOISY
    wide = (np.asarray(noisy(photo, sigma)).astype(np.uint16)) * 257
    assert damage_of(Picture(wide)) == NOISY


def test_blur(photo: Image.Image) -> None:
    for radius, expected in ((0, None), (2, BLURRED), (3, BLURRED)):
        blurred = photo.filter(ImageFilter.GaussianBlur(radius))
        assert damage_of(Picture(np.asarray(blurred))) == expected


def test_undamaged(photo: Image.Image) -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (64, 256, 3)).copy()
    smaller = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
    for pixels in (np.asarray(photo), np.asarray(smaller), np.asarray(drawing()), flat, ramp, flat[:5, :5]):
        assert damage_of(Picture(pixels)) is None
    assert damage_of(Picture(np.asarray(drawing().convert("L"))[..., None])) is None


def test_a_picture_remembers_its_format(photo: Image.Image) -> None:
    assert damage_of(Picture(np.asarray(photo), format="jpeg")) == COMPRESSED


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"dear diary" * 20)
    (tmp_path / "short.tif").write_bytes(b"II*\0")
    (tmp_path / "far.tif").write_bytes(b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(40))
    for name in ("a.png", "absent.png", "short.tif", "far.tif"):
        with pytest.raises(RestortError, match="cannot read"):
            damage_of(tmp_path / name)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_not_believed(tmp_path: Path, name: str) -> None:
    """The look at a file before the run has the limits of reading it."""
    (tmp_path / f"a.{name}").write_bytes(CLAIMS[name])
    with pytest.raises(RestortError, match="cannot hold"):
        damage_of(tmp_path / f"a.{name}")


def test_text_and_frames_are_not_read(tmp_path: Path) -> None:
    bomb = (b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000), 9))
    (tmp_path / "a.png").write_bytes(png(*[bomb] * 60))
    (tmp_path / "a.webp").write_bytes(webp(60_000))
    begin = time.monotonic()
    assert damage_of(tmp_path / "a.png") is None
    assert damage_of(tmp_path / "a.webp") is None
    assert time.monotonic() - begin < 5


def test_the_content_decides_not_the_name(tmp_path: Path, photo: Image.Image) -> None:
    """BMP and the formats of extras are not read by libvips; a wrong suffix must not end the look."""
    photo.save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    assert damage_of(tmp_path / "a.png") is None
    photo.save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.bmp")
    assert damage_of(tmp_path / "b.bmp") is None


def test_a_damaged_file_has_the_sentence_of_reading_it(tmp_path: Path, photo: Image.Image) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:9000])
    with pytest.raises(RestortError, match=r"damaged or cut short \([^\n]*\); copy or download it again"):
        damage_of(tmp_path / "a.png")
