"""The comparison of metadata by ExifTool, on pictures made here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.attack.metadata_tries import compare, lost


def test_what_counts_as_lost() -> None:
    before = {"EXIF:Artist": "A", "EXIF:Make": "M", "XMP:Rating": 5}
    assert lost(before, {"XMP:Artist": "A", "EXIF:Make": "N"}) == ["EXIF:Make", "XMP:Rating"]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="ExifTool is not installed")
def test_tags_survive_and_what_does_not_is_noted(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((16, 24, 3), 90, np.uint8))
    exif = Image.Exif()
    exif[0x013B], exif[0x010F] = "An author", "A maker"
    pictures = [tmp_path / name for name in ("a.jpg", "b.png", "c.webp", "d.tif", "geo.tif")]
    for path in pictures[:3]:
        image.save(path, exif=exif)
    image.save(
        pictures[3],
        tiffinfo={315: "An author", 318: (0.3127, 0.329), 319: (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)},
    )
    image.save(pictures[4], tiffinfo={33550: (1.0, 1.0, 0.0), 42113: "0"})
    (tmp_path / "out").mkdir()
    found = compare(pictures, tmp_path / "out")
    assert found["missing"] == {} and found["refusals"] == {}
    assert (found["done"], found["with tags"], found["lost with a note"]) == (5, 5, 1)


def test_colour_tags_of_tiff_and_the_note_on_georeferences(tmp_path: Path) -> None:
    from restort.imaging.decode import read
    from restort.imaging.encode import write

    image = Image.fromarray(np.full((16, 24, 3), 90, np.uint8))
    image.save(tmp_path / "in.tif", tiffinfo={318: (0.3127, 0.329), 33550: (1.0, 1.0, 0.0)})
    picture = read(tmp_path / "in.tif")
    assert "its georeference (GeoTIFF) was left out" in picture.notes
    write(tmp_path / "out.tif", picture)
    assert tuple(map(float, Image.open(tmp_path / "out.tif").tag_v2[318])) == pytest.approx((0.3127, 0.329))
    assert 33550 not in Image.open(tmp_path / "out.tif").tag_v2
