"""Whatever bytes a file holds, reading gives a picture or a sentence: never a traceback, a message or a hang."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from restort.errors import RestortError
from restort.imaging.decode import read
from restort.imaging.picture import Picture

HEADS = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"\xff\xd8\xff\xe0\0\x10JFIF",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"II*\0\x08\0\0\0",
    b"MM\0+\0\x08\0\0",
    b"GIF89a",
    b"BM\x40\0\0\0\0\0\0\0",
    b"\0\0\0\x1cftypavif",
)


def _seeds() -> dict[str, bytes]:
    """A small real file of each format, with metadata where there is room for it."""
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, (12, 17, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = {}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
        seeds[kind] = buffer.getvalue()
    for kind, mode in (
        ("PNG", "P"),
        ("PNG", "LA"),
        ("TIFF", "CMYK"),
        ("JPEG", "CMYK"),
        ("BMP", "P"),
        ("TIFF", "1"),
    ):
        buffer = io.BytesIO()
        image.convert("RGB").convert(mode).save(buffer, kind)
        seeds[f"{kind}-{mode}"] = buffer.getvalue()
    return seeds


SEEDS = _seeds()
QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def attempt(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        picture = read(path, max_pixels=1_000_000)
    except RestortError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
    else:
        assert isinstance(picture, Picture)
        assert picture.to_unit(3).max() <= 1


@QUICK
@given(head=st.sampled_from((b"", *HEADS)), rest=st.binary(max_size=400))
def test_random_bytes(tmp_path: Path, head: bytes, rest: bytes) -> None:
    attempt(tmp_path / "random.png", head + rest)


@pytest.mark.parametrize("kind", SEEDS)
@QUICK
@given(data=st.data())
def test_mutated_files(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Some bytes changed, a piece cut out or doubled, or the end cut off."""
    content = bytearray(SEEDS[kind])
    place = st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        what = data.draw(st.sampled_from(("change", "early", "cut", "double", "end")))
        first, second = sorted((data.draw(place), data.draw(place)))
        match what:
            case "change":
                content[first % len(content)] = data.draw(st.integers(0, 255))
            case "early":  # headers are where it gets interesting
                content[first % min(len(content), 64)] = data.draw(st.integers(0, 255))
            case "cut" if len(content) > 40:
                del content[first : min(second, first + 20)]
            case "double":
                content[first:first] = content[first : first + 20]
            case _:
                del content[max(second, 20) :]
    attempt(tmp_path / "mutated.jpg", bytes(content))


def test_nothing_was_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in SEEDS.values():
        for place in range(0, len(content), 17):
            attempt(
                tmp_path / "bent.png", content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]
            )
    assert capfd.readouterr() == ("", "")
