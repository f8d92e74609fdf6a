"""Metadata of whole collections, by ExifTool before and after.

    python -m tests.attack.metadata_tries FOLDER [--json FILE]

Every picture below FOLDER goes through a network that changes nothing but the pixels, into a file of its own format
(PNG where that is not written). Counts files that were done, refused as unsupported or damaged, and done with a tag
lost or changed that no note names; lists those. Needs ExifTool. The tests run `compare` on small pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from restort.errors import RestortError
from restort.imaging import formats
from restort.inference.model import Model
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import RESTORMER, FakeRunner, write_weights

KEPT = ("EXIF", "GPS", "XMP", "IPTC", "ICC_Profile", "MakerNotes", "PNG")
"""Groups of tags that are somebody's data; File, Composite and the structure of a format are not."""
_ENCODING = """
Orientation ImageWidth ImageHeight ExifImageWidth ExifImageHeight ImageSize Megapixels BitsPerSample
Compression PhotometricInterpretation SamplesPerPixel PlanarConfiguration StripOffsets StripByteCounts
RowsPerStrip TileOffsets TileByteCounts TileWidth TileLength Predictor YCbCrSubSampling YCbCrPositioning
YCbCrCoefficients ReferenceBlackWhite ThumbnailOffset ThumbnailLength ThumbnailImage ThumbnailTIFF
PreviewImage PreviewImageStart PreviewImageLength OtherImage JpgFromRaw BitDepth ColorType Filter
Interlace ColorMap Palette Transparency SampleFormat FillOrder SubfileType OldSubfileType NewSubfileType
ExtraSamples PageNumber T4Options T6Options JPEGTables Indexed JPEGInterchangeFormat
JPEGInterchangeFormatLength JPEGProc JPEGQTables JPEGDCTables JPEGACTables BackgroundColor PageName
FreeOffsets FreeByteCounts MinSampleValue MaxSampleValue Threshholding XMPToolkit PixelsPerUnitX
PixelsPerUnitY PixelUnits XPosition YPosition Matteing DataType ImageDepth TileDepth BadFaxLines
CleanFaxData ConsecutiveBadFaxLines Thresholding XResolution YResolution ResolutionUnit HalftoneHints
Padding OffsetSchema ProfileName AnimationFrames AnimationPlays SignificantBits JpgFromRawLength
JpgFromRawStart SMinSampleValue SMaxSampleValue
"""
CHANGED = frozenset(_ENCODING.split())
"""Tags that describe the encoding of the pixels, which is new, or the resolution, which has a test of its own."""


def tags(paths: list[Path]) -> dict[Path, dict[str, Any]]:
    """Return the tags of files by ExifTool, as 'Group:Name'."""
    if not paths:
        return {}
    command = ["exiftool", "-json", "-G", "-n", "-a", "-struct", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    records = json.loads(done.stdout or "[]")
    return {
        Path(record["SourceFile"]): {
            name: value
            for name, value in record.items()
            if name.partition(":")[0] in KEPT and name.partition(":")[2] not in CHANGED
        }
        for record in records
    }


def lost(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the tags that are gone or differ; a tag may move to another group of the same name."""
    values: dict[str, list[str]] = {}
    for name, value in after.items():
        values.setdefault(name.partition(":")[2], []).append(str(value))
    return sorted(
        name for name, value in before.items() if str(value) not in values.get(name.partition(":")[2], [])
    )


def compare(pictures: list[Path], folder: Path) -> dict[str, Any]:
    """Restore `pictures` into `folder`; return the counts and what was lost without a note."""
    weights = load_weights(write_weights(folder / "x1.safetensors", RESTORMER))
    model = Model(weights, FakeRunner(weights.spec, "fp32"), name="fake", asked=("auto", "auto"))
    outcomes: Counter[str] = Counter()
    made: dict[Path, tuple[Path, tuple[str, ...]]] = {}
    refused: dict[str, str] = {}
    for i, source in enumerate(pictures):
        suffix = source.suffix.lower() if source.suffix.lower() in formats.WRITE_SUFFIXES else ".png"
        target = folder / f"{i}{suffix}"
        try:
            about = model.restore_file(source, target)
        except RestortError as error:
            outcomes["refused"] += 1
            refused[source.name] = str(error).replace(str(source), source.name)
        else:
            outcomes["done"] += 1
            made[source] = target, about.notes
    before, after = tags(list(made)), tags([target for target, _ in made.values()])
    missing = {}
    for source, (target, notes) in made.items():
        gone = lost(before.get(source, {}), after.get(target, {}))
        if gone and not notes:
            missing[source.name] = gone
        outcomes["with tags"] += bool(before.get(source))
        outcomes["lost with a note"] += bool(gone and notes)
    outcomes["lost without a note"] = len(missing)
    return {"files": len(pictures), **outcomes, "missing": missing, "refusals": refused}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result there")
    args = parser.parse_args()
    if shutil.which("exiftool") is None:
        print("ExifTool is not installed: apt-get install libimage-exiftool-perl")
        return 1
    known = {suffix for suffixes in formats.READABLE.values() for suffix in suffixes}
    pictures = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in known and p.is_file())
    with tempfile.TemporaryDirectory() as folder:
        found = compare(pictures, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print({name: value for name, value in found.items() if isinstance(value, int)})
    print(Counter(tag for gone in found["missing"].values() for tag in gone).most_common(25))
    return 0


if __name__ == "__main__":
    sys.exit(main())
