"""Metadata that libvips does not carry: what the output format holds arrives, what it does not is named in a note."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from restort.errors import RestortError
from restort.imaging import chunks, colour, metadata, tiff_tags
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.tiff_tags import HEIGHT, WIDTH

RGB = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a xmp:Rating="5" tiff:Orientation="6"/></x:xmpmeta>'


def png(before: list[chunks.Chunk] = [], behind: list[chunks.Chunk] = []) -> bytes:  # noqa: B006
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
    header = (b"IHDR", struct.pack(">IIBBBBB", 30, 20, 8, 2, 0, 0, 0))
    parts = [header, *before, (b"IDAT", rows), *behind, (b"IEND", b"")]
    return chunks.PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def pillow(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, **options)
    return buffer.getvalue()


def through(folder: Path, data: bytes, suffix: str) -> tuple[bytes, tuple[str, ...]]:
    """Read and write: the new file, and the notes of both."""
    source, target = folder / "in.bin", folder / f"out{suffix}"
    source.write_bytes(data)
    picture = read(source)
    notes = write(target, picture, overwrite=True)
    return target.read_bytes(), picture.notes + notes


TEXT = [
    (b"tEXt", b"parameters\0a castle, Seed: 1234"),
    (b"iTXt", b"Title\0\0\0\0\0" + "Schloß".encode()),
    (b"zTXt", b"workflow\0\0" + zlib.compress(b"{}")),
    (b"tIME", b"\x07\xe4\1\2\3\4\5"),
]


@pytest.mark.parametrize("place", ["before", "behind"])
def test_png_text(tmp_path: Path, place: str) -> None:
    data = png(**{place: TEXT})
    made, notes = through(tmp_path, data, ".png")
    assert [chunk for chunk in chunks.png_chunks(made) if chunk[0] in chunks.TEXT_CHUNKS] == TEXT
    assert notes == ()
    assert through(tmp_path, data, ".jpg")[1] == ("PNG text was dropped: JPEG cannot hold it",)


def test_exif_and_xmp_behind_the_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "ACME"
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    data = png(behind=[(b"eXIf", block), (b"iTXt", chunks.XMP_KEYWORD + b"\0\0\0\0" + XMP)])
    made, notes = through(tmp_path, data, ".png")
    image = Image.open(io.BytesIO(made))
    assert (image.size, image.getexif()[0x010F], image.getexif().get(0x0112, 1)) == ((20, 30), "ACME", 1)
    xmp = read(tmp_path / "out.png").xmp
    assert xmp is not None and b'Rating="5" tiff:Orientation="1"' in xmp
    assert notes == ()


def test_gamma_and_primaries(tmp_path: Path) -> None:
    linear = [(b"gAMA", struct.pack(">I", 100_000))]
    made, notes = through(tmp_path, png(linear), ".png")
    assert linear[0] in list(chunks.png_chunks(made)) and notes == ()
    assert "colours of gAMA, cHRM or cICP was dropped" in through(tmp_path, png(linear), ".jpg")[1][0]


@pytest.mark.parametrize(
    ("written", "noted"),
    [
        ([(b"gAMA", struct.pack(">I", 45455))], False),
        ([(b"sRGB", b"\1")], False),
        ([(b"sRGB", b"\1"), (b"gAMA", struct.pack(">I", 45455))], False),
        ([(b"cICP", bytes([9, 16, 0, 1]))], True),
    ],
)
def test_chunks_that_define_the_colours(
    tmp_path: Path, written: list[tuple[bytes, bytes]], noted: bool
) -> None:
    made, notes = through(tmp_path, png(written), ".png")
    found = list(chunks.png_chunks(made))
    assert all(chunk in found for chunk in written) and notes == ()
    assert bool(through(tmp_path, png(written), ".jpg")[1]) is noted


def test_the_extension_of_xmp_is_noted(tmp_path: Path) -> None:
    body = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + bytes(8) + b"<x/>"
    data = pillow("JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    assert "the extension of its XMP was left out" in through(tmp_path, data, ".jpg")[1]


@pytest.mark.parametrize("comment", [b"(c) A NAME", "Schloß".encode(), b"\xe4\xff"])
def test_jpeg_comments(tmp_path: Path, comment: bytes) -> None:
    data = pillow("JPEG", comment=comment)
    made, notes = through(tmp_path, data, ".jpg")
    assert Image.open(io.BytesIO(made)).info["comment"] == comment and notes == ()
    text = comment.decode("utf-8" if comment != b"\xe4\xff" else "latin-1")
    image = Image.open(io.BytesIO(through(tmp_path, data, ".png")[0]))
    image.load()
    assert image.info["Comment"] == text
    assert through(tmp_path, data, ".tif")[1] == ("JPEG comments was dropped: TIFF cannot hold it",)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png", ".webp", ".avif"])
def test_tiff_tags(tmp_path: Path, suffix: str, big: bool) -> None:
    tifffile = pytest.importorskip("tifffile")
    iptc = b"\x1c\x02\x74\x00\x06A NAME"
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        RGB,
        photometric="rgb",
        bigtiff=big,
        byteorder=">" if big else "<",
        description="Sunset",
        software="S",
        datetime="2020:01:02 03:04:05",
        metadata=None,
        extratags=[
            (315, 2, 0, "A NAME", True),
            (33432, 2, 0, "(c) A NAME", True),
            (34377, 7, len(block), block, True),
        ],
    )
    made, notes = through(tmp_path, buffer.getvalue(), suffix)
    exif = Image.open(io.BytesIO(made)).getexif()
    found = {tag: exif[tag] for tag in (270, 305, 306, 315, 33432)}
    assert found == {270: "Sunset", 305: "S", 306: "2020:01:02 03:04:05", 315: "A NAME", 33432: "(c) A NAME"}
    if suffix in (".tif", ".jpg"):
        assert iptc in made and notes == ()
    else:
        name = {".png": "PNG", ".webp": "WebP", ".avif": "AVIF"}[suffix]
        assert notes == (f"IPTC was dropped: {name} cannot hold it",)
    if suffix == ".tif":
        (tmp_path / "again.tif").write_bytes(made)
        again = read(tmp_path / "again.tif")
        assert np.array_equal(again.pixels, RGB) and again.iptc == iptc


@given(
    st.binary(max_size=300),
    st.sampled_from([b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b""]),
)
def test_any_bytes_may_stand_for_containers(data: bytes, start: bytes) -> None:
    found = tiff_tags.read_directory(start + data)
    if found is not None:
        block = tiff_tags.exif_of_tiff(*found)
        assert block is None or tiff_tags.read_directory(block[6:]) is not None
    tiff_tags.iptc_of_photoshop(b"8BIM" + data)
    list(chunks.png_chunks(chunks.PNG_SIGNATURE + data))
    list(chunks.jpeg_segments(b"\xff\xd8\xff" + data))
    metadata.exif_orientation(start + data)


def test_a_directory_that_points_to_one_block_from_many_tags_is_bounded() -> None:
    block = bytes(1 << 20)
    entries = b"".join(struct.pack("<HHII", 270 + i, 1, len(block), 0) for i in range(4000))
    data = b"II*\0" + struct.pack("<IH", 8, 4000) + entries + bytes(4) + block
    found = tiff_tags.read_directory(data)
    assert found is not None
    assert sum(len(value.data) for value in found[1].values.values()) <= 16 << 20


def test_xmp_orientation_stays_where_the_pixels_were_not_turned(tmp_path: Path) -> None:
    made, _ = through(tmp_path, pillow("JPEG", xmp=XMP), ".jpg")
    assert b'tiff:Orientation="6"' in made


def test_a_gain_map_takes_only_its_own_properties_away() -> None:
    gain = (
        b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" xmp:Rating="5">'
        b"<hdrgm:GainMapMax><rdf:Seq><rdf:li>1</rdf:li></rdf:Seq></hdrgm:GainMapMax>"
        b"<Container:Directory><rdf:Seq/></Container:Directory><dc:title>T</dc:title></rdf:Description>"
    )
    assert metadata.has_gain_map(gain)
    assert metadata.without_gain_map(gain) == (
        b'<rdf:Description xmp:Rating="5"><dc:title>T</dc:title></rdf:Description>'
    )
    assert metadata.without_gain_map(gain * 1000) is None


def test_profiles_of_a_wrong_length(tmp_path: Path) -> None:
    srgb = colour.srgb_profile()
    made, notes = through(tmp_path, pillow("JPEG", icc_profile=srgb + bytes(100)), ".png")
    assert Image.open(io.BytesIO(made)).info["icc_profile"] == srgb and notes == ()
    made, notes = through(tmp_path, pillow("JPEG", icc_profile=srgb[:300]), ".png")
    assert notes == ("the colour profile does not fit the pixels and was dropped",)
    assert "icc_profile" not in Image.open(io.BytesIO(made)).info


def test_a_profile_that_the_encoder_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restort.imaging.colour.repaired_profile", lambda icc: icc)
    made, notes = through(tmp_path, pillow("JPEG", icc_profile=colour.srgb_profile() + bytes(7)), ".png")
    assert notes == ("the colour profile was dropped: the encoder of PNG refuses it",)
    assert Image.open(io.BytesIO(made)).size == (30, 20)


# --- kinds of files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_arrives_byte_for_byte_but_for_the_size(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    inner = {WIDTH: 30, HEIGHT: 20, 0x927C: b"a note of the maker", 0x9003: "2020:01:02 03:04:05"}
    exif[0x010F], exif[0x8769] = "ACME", inner
    block = exif.tobytes()
    (tmp_path / "a.png").write_bytes(pillow("PNG", exif=block, dpi=None if suffix == ".webp" else (300, 200)))
    picture = read(tmp_path / "a.png")
    assert write(tmp_path / ("b" + suffix), picture) == ()
    with Image.open(tmp_path / ("b" + suffix)) as image:
        assert np.asarray(image).shape == RGB.shape
        if suffix != ".webp":
            assert image.info["dpi"] == pytest.approx((300, 200), abs=0.1)
        kept = image.info["exif"].removeprefix(b"Exif\0\0")
    assert kept == block.removeprefix(b"Exif\0\0")

    larger = dataclasses.replace(picture, pixels=picture.pixels.repeat(2, axis=0).repeat(2, axis=1))
    write(tmp_path / ("c" + suffix), larger)
    with Image.open(tmp_path / ("c" + suffix)) as image:
        found = image.getexif().get_ifd(0x8769)
    assert (found[WIDTH], found[HEIGHT], found[0x927C]) == (60, 40, b"a note of the maker")


def test_adobe_rgb_marked_by_exif_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65535, 0xA005: {1: "R03"}}
    flat = Image.new("RGB", (16, 16), (60, 200, 60))
    flat.save(tmp_path / "a.jpg", exif=exif.tobytes(), quality=100, subsampling=0)
    picture = read(tmp_path / "a.jpg")
    assert picture.icc is not None and colour.profile_channels(picture.icc) == 3
    assert colour.repaired_profile(picture.icc) == picture.icc
    assert picture.notes == ("EXIF says Adobe RGB: a profile of it was added",)
    for suffix in (".png", ".tif", ".jpg", ".webp"):
        write(tmp_path / ("b" + suffix), picture)
        with Image.open(tmp_path / ("b" + suffix)) as image:
            assert image.info["icc_profile"] == picture.icc
    write(tmp_path / "b.bmp", picture)  # without a profile, in sRGB: (60, 200, 60) lies outside of it
    found = read(tmp_path / "b.bmp").pixels[8, 8]
    assert found[0] == 0 and abs(int(found[1]) - 202) <= 3

    exif[0x8769] = {0xA001: 1, 0xA005: {1: "R98"}}
    flat.save(tmp_path / "c.jpg", exif=exif.tobytes())
    assert read(tmp_path / "c.jpg").icc is None


def test_jpeg_without_its_end_marker(tmp_path: Path) -> None:
    sound = pillow("JPEG", exif=b"Exif\0\0" + pillow("JPEG"))  # with the markers of a thumbnail in front
    (tmp_path / "a.jpg").write_bytes(sound)
    for cut in (1, 2):
        (tmp_path / "b.jpg").write_bytes(sound[:-cut])
        assert np.array_equal(read(tmp_path / "b.jpg").pixels, read(tmp_path / "a.jpg").pixels)
    for data in (sound[:-40], sound[: len(sound) * 2 // 3], pillow("JPEG", progressive=True)[:-2]):
        (tmp_path / "b.jpg").write_bytes(data)
        with pytest.raises(RestortError, match="damaged or cut short"):
            read(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("bits", "masks", "dtype"),
    [
        (32, (0xFF, 0xFF00, 0xFF0000, 0), np.uint8),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0), np.uint16),
        (16, (0xF00, 0xF0, 0xF, 0xF000), np.uint8),
    ],
)
def test_bmp_with_masks_of_any_kind(tmp_path: Path, bits: int, masks: tuple[int, ...], dtype: type) -> None:
    full = [mask // (mask & -mask) if mask else 0 for mask in masks]
    wanted = np.random.default_rng(1).integers(0, np.array(full) + 1, (5, 3, 4))
    stored = sum(wanted[:, :, i] * (masks[i] & -masks[i]) for i in range(4)).astype(f"<u{bits // 8}")
    rows = np.zeros((5, (3 * bits + 31) // 32 * 4), np.uint8)
    rows[:, : 3 * bits // 8] = np.ascontiguousarray(stored).view(np.uint8)
    head = struct.pack("<IiiHHIIiiII", 108, 3, -5, 1, bits, 3, rows.size, 2835, 2835, 0, 0)
    head += struct.pack("<4I", *masks) + bytes(52)
    head = b"BM" + struct.pack("<IHHI", 122 + rows.size, 0, 0, 122) + head
    (tmp_path / "a.bmp").write_bytes(head + rows.tobytes())
    picture = read(tmp_path / "a.bmp")
    top = np.iinfo(dtype).max
    assert picture.pixels.dtype == dtype and (picture.alpha is not None) == bool(masks[3])
    assert np.array_equal(picture.pixels, np.rint(wanted[:, :, :3] / np.array(full[:3]) * top).astype(dtype))
    (tmp_path / "a.bmp").write_bytes(head + rows.tobytes()[:-4])
    with pytest.raises(RestortError, match="damaged"):
        read(tmp_path / "a.bmp")


def test_gray_avif_stays_gray(tmp_path: Path) -> None:
    gray = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8), (64, 64))
    for mode, expected in (("L", 1), ("RGB", 3)):
        Image.fromarray(gray).convert(mode).save(tmp_path / "a.avif", quality=95)
        picture = read(tmp_path / "a.avif")
        assert picture.channels == expected
        assert np.abs(picture.pixels[:, :, 0].astype(int) - gray).max() <= 4


def test_an_animated_avif_has_a_note(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(RGB, i)) for i in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.avif").notes == ("only the first frame of the animation was read",)


def test_8_bit_lab(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    lab = np.broadcast_to(
        np.array([136, 80, 67], np.uint8), (16, 16, 3)
    )  # L 53.3, a 80, b 67: the red of sRGB
    tifffile.imwrite(tmp_path / "a.tif", lab, photometric="cielab")
    picture = read(tmp_path / "a.tif")
    assert picture.notes == ("Lab was converted to sRGB",)
    assert np.abs(picture.pixels[8, 8] / 257 - (255, 0, 0)).max() < 3


def test_old_style_jpeg_in_tiff_is_refused(tmp_path: Path) -> None:
    entries = {256: 64, 257: 64, 258: 8, 259: 6, 262: 6, 277: 3, 322: 64, 323: 64, 324: 8, 325: 4}
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries.items())
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(8))
    with pytest.raises(RestortError, match=r"old-style JPEG compression\); convert it to PNG or TIFF"):
        read(tmp_path / "a.tif")


def test_a_sound_file_of_an_unsupported_kind_is_not_damaged(tmp_path: Path) -> None:
    entries = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 6}
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries.items())
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(8))
    with pytest.raises(RestortError, match=r"this kind of TIFF file is not supported .*; convert it"):
        read(tmp_path / "a.tif")


def test_a_bmp_whose_alpha_is_unused_is_opaque(tmp_path: Path) -> None:
    head = struct.pack("<2sIHHI", b"BM", 54 + 16, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 2, 2, 1, 32, 0, 16, 0, 0, 0, 0
    )
    (tmp_path / "a.bmp").write_bytes(head + bytes([10, 90, 200, 0]) * 4)
    picture = read(tmp_path / "a.bmp")
    assert picture.alpha is None
    assert picture.pixels[0, 0].tolist() == [200, 90, 10]


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC needs the extra .formats.; .*, or convert it"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "HEIC needs the extra .formats.; .*, or convert it"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw needs the extra .formats.; .*, or develop it"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw needs the extra .formats.; .*, or develop it"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "video files are not supported; save a frame"),
        (b"<!DOCTYPE html>", "HTML files are not supported"),
        (b"P4\n8 8\n", "PNM files are not supported"),
        (b"qoif", "QOI files are not supported"),
    ],
)
def test_known_formats_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, sentence: str
) -> None:
    monkeypatch.setattr("restort.imaging.extra_formats.installed", lambda _: False)
    (tmp_path / "a.jpg").write_bytes(head + bytes(100))
    with pytest.raises(RestortError, match=sentence):
        read(tmp_path / "a.jpg")
