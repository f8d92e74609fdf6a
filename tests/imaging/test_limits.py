"""Files that ask for much more than they hold: refused or read within a second, in little memory."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restort.errors import RestortError
from restort.imaging import chunks, limits
from restort.imaging.decode import read
from restort.imaging.encode import check_fits
from restort.utils import memory


def gif(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + screen + frame + b"\x02\x02\x44\x01\x00\x3b"


def bmp(width: int, height: int, bits: int, compression: int, body: bytes) -> bytes:
    palette = bytes(1024) if bits == 8 else b""
    start = 54 + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 2835, 2835, len(palette) // 4, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def webp(frames: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (10, 20, 30)).save(buffer, "WEBP", lossless=True)
    image = buffer.getvalue()[12:]
    frame = bytes(12) + (100).to_bytes(3, "little") + b"\0" + image + bytes(len(image) % 2)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + bytes(6)
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body += (b"ANMF" + struct.pack("<I", len(frame)) + frame) * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def png(*text: chunks.Chunk) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(buffer, "PNG")
    return chunks.insert_png_chunks(buffer.getvalue(), text)


CLAIMS = {
    "gif": gif(65535, 7000),
    "rle.bmp": bmp(8388640, 24, 8, 1, b"\xff\0" * 40),
    "raw.bmp": bmp(30000, 15000, 24, 0, bytes(60)),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_header_that_claims_more_than_the_file_holds(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    path.write_bytes(CLAIMS[name])
    begin = time.monotonic()
    with pytest.raises(RestortError, match=r"damaged or cut short .*cannot hold"):
        read(path)
    assert time.monotonic() - begin < 5


def test_sparse_run_length_pictures_are_still_read(tmp_path: Path) -> None:
    """Escapes skip to the end of a line: few bytes, many pixels, and a sound file."""
    (tmp_path / "a.bmp").write_bytes(bmp(900, 500, 8, 1, b"\1\5\0\0" * 500 + b"\0\1"))
    assert read(tmp_path / "a.bmp").pixels.shape == (500, 900, 3)


def test_many_frames_are_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp(60_000))
    begin = time.monotonic()
    picture = read(path)
    assert time.monotonic() - begin < 5
    assert picture.pixels.tolist() == [[[10, 20, 30]]]
    assert picture.notes == ("only the first of 60000 frames was read",)


def test_text_is_carried_but_not_decompressed(tmp_path: Path) -> None:
    packed = zlib.compress(b"a" * 7_900_000, 9)
    texts = [(b"zTXt", b"k%d\0\0" % i + packed) for i in range(60)]
    path = tmp_path / "a.png"
    path.write_bytes(png(*texts))
    tracemalloc.start()
    begin = time.monotonic()
    picture = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begin < 5 and peak < 20e6
    assert picture.text == tuple(texts)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
def test_xmp_of_any_kind_of_chunk(tmp_path: Path, kind: bytes) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    bodies = {b"zTXt": b"\0" + zlib.compress(packet), b"iTXt": bytes(4) + packet, b"tEXt": packet}
    (tmp_path / "a.png").write_bytes(png((kind, chunks.XMP_KEYWORD + bodies[kind])))
    assert read(tmp_path / "a.png").xmp == packet


def test_memory_is_asked_for_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((400, 500, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(limits, "available_memory", lambda: 1_000_000)
    with pytest.raises(
        RestortError, match=r"500 x 400 pixels need about 0\.0 GB of memory.*close other programs"
    ):
        read(tmp_path / "a.png")
    assert read(tmp_path / "a.png", max_pixels=None).width == 500


def test_the_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 62, 1 << 62))
    unlimited = memory.available_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    assert memory.available_memory() == 0 < unlimited


@pytest.mark.parametrize(
    "name, side, fits",
    [
        *(
            ("a.webp", 16383, True),
            ("a.webp", 16384, False),
            ("a.avif", 16384, True),
            ("a.avif", 16385, False),
        ),
        *(("a.jpg", 65500, True), ("a.jpg", 65501, False), ("a.png", 65501, True)),
    ],
)
def test_sizes_that_a_format_holds(name: str, side: int, fits: bool) -> None:
    if fits:
        check_fits(Path(name), side, 8)
        return
    with pytest.raises(RestortError, match=r"holds at most \d+ pixels a side"):
        check_fits(Path(name), 8, side)
