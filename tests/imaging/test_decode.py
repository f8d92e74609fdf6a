"""Reading: every kind of file gives the right pixels or one clear sentence."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restort.errors import RestortError
from restort.imaging.decode import read
from restort.imaging.picture import Picture
from restort.imaging.vips import to_vips, vips

RNG = np.random.default_rng(7)
GRAY = RNG.integers(0, 256, (9, 14), np.uint8)
RGB = RNG.integers(0, 256, (9, 14, 3), np.uint8)
RGBA = RNG.integers(0, 256, (9, 14, 4), np.uint8)


def pillow(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file from raw scanlines, for what no library writes."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + chunks[0] + extra + chunks[1] + chunks[2]


@pytest.fixture
def load(tmp_path: Path):
    def load(data: bytes, name: str = "a picture.bin", **options) -> Picture:
        path = tmp_path / name
        path.write_bytes(data)
        return read(path, **options)

    return load


# --- what it reads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray_stays_gray(load, kind: str) -> None:
    picture = load(pillow(Image.fromarray(GRAY), kind))
    expected = GRAY[:, :, None]
    if kind in ("GIF", "BMP") and picture.channels == 3:  # palettes
        expected = expected.repeat(3, axis=2)
    assert np.array_equal(picture.pixels, expected)
    assert picture.alpha is None or (picture.alpha == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colour(load, kind: str) -> None:
    picture = load(pillow(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(picture.pixels, RGB)
    assert (picture.bits, picture.alpha, picture.notes) == (8, None, ())
    assert picture.format == kind.lower()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_colour(load, kind: str) -> None:
    smooth = np.full((32, 40, 3), (200, 100, 50), np.uint8)
    picture = load(pillow(Image.fromarray(smooth), kind, quality=95))
    assert picture.pixels.shape == smooth.shape
    assert np.abs(picture.pixels.astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha(load, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = load(pillow(Image.fromarray(RGBA), kind, **options))
    assert np.array_equal(picture.pixels, RGBA[:, :, :3])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, RGBA[:, :, 3])


def test_gray_with_alpha(load) -> None:
    picture = load(pillow(Image.fromarray(RGBA[:, :, :2].copy(), "LA"), "PNG"))
    assert np.array_equal(picture.pixels[:, :, 0], RGBA[:, :, 0])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, RGBA[:, :, 1])


@pytest.mark.parametrize("saver", ["pngsave_buffer", "tiffsave_buffer"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_16_bit(load, saver: str, bands: int) -> None:
    deep = RNG.integers(0, 65536, (9, 14, bands), np.uint16)
    picture = load(getattr(to_vips(deep), saver)())
    joined = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    assert picture.bits == 16
    assert np.array_equal(joined, deep)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_png(load, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (4, 16), np.uint8)
    weights = 2 ** (bits * np.arange(8 // bits))[::-1]
    packed = (values.reshape(4, -1, 8 // bits) * weights).sum(axis=2).astype(np.uint8)
    picture = load(png(16, 4, bits, 0, b"".join(b"\0" + row.tobytes() for row in packed)))
    assert np.array_equal(picture.pixels[:, :, 0], values * (255 // (2**bits - 1)))


def test_1_bit_tiff(load) -> None:
    black_white = Image.fromarray(GRAY > 127)
    picture = load(pillow(black_white, "TIFF", compression="group4"))
    assert np.array_equal(picture.pixels[:, :, 0], np.where(GRAY > 127, 255, 0))


def test_palette_with_transparency(load) -> None:
    indices = Image.fromarray((GRAY // 64).astype(np.uint8), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    picture = load(pillow(indices, "PNG", transparency=2))
    assert np.array_equal(picture.pixels[:, :, 0], 10 + 30 * (GRAY // 64))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(GRAY // 64 == 2, 0, 255))


def test_palette_bmp(load) -> None:
    indices = Image.fromarray((GRAY // 64).astype(np.uint8), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    assert np.array_equal(load(pillow(indices, "BMP")).pixels[:, :, 2], 30 + 30 * (GRAY // 64))


def test_associated_alpha_is_divided_out(load) -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    colours = np.full((4, 5, 3), 100, np.uint8)
    tifffile.imwrite(
        buffer,
        np.dstack([colours // 2, np.full((4, 5), 128, np.uint8)]),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    picture = load(buffer.getvalue())
    assert np.abs(picture.pixels.astype(int) - 100).max() <= 1
    assert picture.alpha is not None
    assert (picture.alpha == 128).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_srgb(load, kind: str) -> None:
    flat = np.zeros((16, 16, 4), np.uint8)  # no ink: white
    flat[8:, :, 3] = 255  # black ink only
    picture = load(pillow(Image.fromarray(flat, "CMYK"), kind))
    assert picture.notes == ("CMYK was converted to sRGB",)
    assert picture.icc is not None
    assert picture.icc[16:20] == b"RGB "
    assert picture.pixels.shape == (16, 16, 3)
    assert picture.pixels[:7].min() > 245
    assert picture.pixels[9:].max() < 70


def test_cmyk_profile_does_not_travel(load) -> None:
    profile = bytes(vips().Operation.call("profile_load", "cmyk"))
    flat = np.zeros((16, 16, 4), np.uint8)
    picture = load(pillow(Image.fromarray(flat, "CMYK"), "JPEG", icc_profile=profile))
    assert picture.icc is not None
    assert picture.icc != profile
    assert picture.icc[16:20] == b"RGB "


def test_a_profile_of_other_channels_is_dropped(load) -> None:
    profile = bytes(vips().Operation.call("profile_load", "cmyk"))
    picture = load(pillow(Image.fromarray(RGB), "TIFF", icc_profile=profile))
    assert picture.icc is None
    assert picture.notes == ("the colour profile does not fit the pixels and was dropped",)


def test_lab_becomes_srgb(load) -> None:
    grey = to_vips(np.full((8, 8, 3), 128, np.uint8)).colourspace("lab").cast("float")
    data = grey.colourspace("labs").tiffsave_buffer()
    picture = load(data)
    assert picture.notes == ("Lab was converted to sRGB",)
    assert np.abs(picture.pixels.astype(int) / 257 - 128).max() < 2


def test_another_profile_is_kept_and_pixels_untouched(load) -> None:
    profile = bytes(vips().Operation.call("profile_load", "p3"))
    picture = load(pillow(Image.fromarray(RGB), "PNG", icc_profile=profile))
    assert picture.icc == profile
    assert np.array_equal(picture.pixels, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(load, kind: str, orientation: int) -> None:
    from PIL import ImageOps

    smooth = np.zeros((16, 24, 3), np.uint8)
    smooth[:8, :8] = 255
    smooth[8:, 16:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pillow(Image.fromarray(smooth), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    picture = load(data)
    assert picture.pixels.shape == expected.shape
    assert np.abs(picture.pixels.astype(int) - expected).max() < 12
    if picture.exif is not None:
        again = Image.Exif()
        again.load(picture.exif if picture.exif.startswith(b"Exif") else b"Exif\0\0" + picture.exif)
        assert again[0x0112] == 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read_with_a_note(load, kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (50, 100, 150)]
    picture = load(pillow(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(picture.pixels.astype(int) - 50).max() <= 3
    (note,) = picture.notes
    assert "only the first" in note


@pytest.mark.parametrize("shape", [(1, 1), (3, 4000), (4000, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_extreme_shapes(load, shape: tuple[int, int], kind: str) -> None:
    assert load(pillow(Image.new("RGB", shape[::-1]), kind)).pixels.shape == (*shape, 3)


@pytest.mark.parametrize(
    "name", ["a[b].png", "péché 写真 🙂.png", "x=1,page=2.png", "x" * 250 + ".png", "-o.png", "%s.png"]
)
def test_names(load, name: str) -> None:
    assert np.array_equal(load(pillow(Image.fromarray(RGB), "PNG"), name).pixels, RGB)


@pytest.mark.skipif(os.name == "nt", reason="names are not bytes there")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    path.write_bytes(pillow(Image.fromarray(RGB), "PNG"))
    assert np.array_equal(read(path).pixels, RGB)


# --- what it refuses ----------------------------------------------------------------------------------------


def sentence(error: pytest.ExceptionInfo[RestortError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(RestortError, match="there is no such file") as error:
        read(tmp_path / "no.png")
    sentence(error)
    with pytest.raises(RestortError, match="there is no folder"):
        read(tmp_path / "none" / "no.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(RestortError, match="is a folder"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RestortError, match="not a regular file"):
        read(tmp_path / "pipe.png")


def test_empty(load) -> None:
    with pytest.raises(RestortError, match="the file is empty"):
        load(b"")


def test_text_named_png(load) -> None:
    with pytest.raises(
        RestortError, match=r"not a picture in a known format; supported are PNG, JPEG"
    ) as error:
        load(b"Dear diary, today I restored a photograph.", "diary.png")
    sentence(error)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(pillow(Image.fromarray(RGB), "PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("restort.utils.files.os.open", refuse)
    with pytest.raises(RestortError, match=r"locked\.png: permission denied"):
        read(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.98, 0.6, 0.2])
def test_truncated(load, kind: str, share: float) -> None:
    data = pillow(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    with pytest.raises(RestortError, match="damaged or cut short") as error:
        load(data[: int(len(data) * share)])
    sentence(error)


def test_wrong_checksum(load) -> None:
    data = bytearray(pillow(Image.fromarray(RGB), "PNG"))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(RestortError, match="damaged"):
        load(bytes(data))


def huge(kind: str) -> bytes:
    """A small file whose header claims 100,000 x 100,000 pixels."""
    small = pillow(Image.fromarray(RGB), kind)
    if kind == "PNG":
        return png(100_000, 100_000, 8, 2, b"\0" * 5000)
    if kind == "BMP":
        return small[:18] + struct.pack("<ii", 100_000, 100_000) + small[26:]
    data = bytearray(small)
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):
            struct.pack_into("<HIHH", data, entry + 2, 4, 1, 100_000 & 0xFFFF, 100_000 >> 16)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_header_that_claims_too_much(load, kind: str) -> None:
    tracemalloc.start()
    with pytest.raises(
        RestortError, match="100000 x 100000 pixels, more than the limit of 500 million"
    ) as error:
        load(huge(kind))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert "--max-pixels" in sentence(error)


def test_bomb(load) -> None:
    """20,000 x 20,000 white pixels in 50 kB: over a limit that the caller sets."""
    rows = zlib.compress((b"\0" + b"\xff" * 2500) * 20_000, 9)
    with pytest.raises(RestortError, match="20000 x 20000"):
        load(png(20_000, 20_000, 1, 0, rows), max_pixels=100_000_000)


def test_the_limit_is_an_option(load) -> None:
    data = pillow(Image.fromarray(RGB), "PNG")
    with pytest.raises(RestortError, match="14 x 9 pixels"):
        load(data, max_pixels=125)
    assert load(data, max_pixels=126).width == 14
    assert load(data, max_pixels=None).width == 14


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "uint32", "int8"])
def test_other_samples(load, dtype: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, RGB.astype(dtype), photometric="rgb")
    with pytest.raises(RestortError, match="its samples are") as error:
        load(buffer.getvalue())
    assert "convert it" in sentence(error)


def test_five_channels(load) -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    five = RNG.integers(0, 256, (6, 7, 5), np.uint8)
    tifffile.imwrite(buffer, five, photometric="minisblack", planarconfig="contig")
    with pytest.raises(RestortError, match="it has 5 channels"):
        load(buffer.getvalue())


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"%PDF-1.4", "PDF"),
        (b"<svg xmlns=", "SVG"),
    ],
)
def test_known_but_unsupported(load, head: bytes, name: str) -> None:
    with pytest.raises(RestortError, match=f"{name} files are not supported"):
        load(head + bytes(100))


def test_nothing_is_printed(load, capfd: pytest.CaptureFixture[str]) -> None:
    data = pillow(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    odd = data[:-2] + b"\x12\x34" * 20 + data[-2:]  # libjpeg warns of extraneous bytes
    assert load(odd).width == 64
    with pytest.raises(RestortError):
        load(data[:500])
    assert capfd.readouterr() == ("", "")


def test_messages_that_are_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    """libvips quotes damaged files: bytes that are not UTF-8 neither print a traceback nor hide the error."""
    pyvips = vips()
    words = pyvips.ffi.new("char[]", b"chunk \x82\xff")
    assert pyvips.error._to_string(words) == "chunk \ufffd\ufffd", "what pyvips.Error makes its text with"
    pyvips._log_handler_callback(pyvips.ffi.new("char[]", b"VIPS"), 16, words, pyvips.ffi.NULL)
    assert capfd.readouterr() == ("", "")
