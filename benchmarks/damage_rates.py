"""python benchmarks/damage_rates.py: what restort.inference.damage.damage_of finds in pictures whose damage is known.

Clean pictures are the bicubically reduced ones of Set5, Set14 (2 and 4 times) and BSD100 (4 times), Kodak24 as it is
and reduced 2 and 4 times, and rendered drawings. All but every fifth of BSD100 are measured clean only; the others are
damaged in each way and stored without loss, too. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from restort.imaging.picture import Picture
from restort.inference.damage import damage_of

DATA = Path(__file__).resolve().parents[2] / "shared/data/test"
JPEG, NOISE, BLUR = (40, 75, 90, 95), (3, 5, 10), (1, 1.5, 2, 3)


def pictures(data: Path) -> Iterator[tuple[str, bool, Image.Image]]:
    """Name of the set, whether to damage the picture, the clean picture."""
    for name, pattern in (
        ("Set5 /4", "set5/LR_bicubic/X4"),
        ("Set14 /4", "set14/LR_bicubic/X4"),
        ("Set14 /2", "set14/LR_bicubic/X2"),
        ("BSD100 /4", "bsd100/LR_bicubic/X4"),
    ):
        for i, path in enumerate(sorted((data / pattern).glob("*.png"))):
            yield name, "BSD" not in name or i % 5 == 0, Image.open(path).convert("RGB")
    for path in sorted((data / "kodak24").glob("*.png")):
        full = Image.open(path).convert("RGB")
        yield "Kodak24", False, full
        for factor in (2, 4):
            size = full.width // factor, full.height // factor
            yield f"Kodak24 /{factor}", factor == 4, full.resize(size, Image.Resampling.BICUBIC)
    for seed in range(20):
        yield "drawings", False, drawing(seed, icons=False)
        yield "drawings with icons on a grid of 8", False, drawing(seed, icons=True)


def drawing(seed: int, icons: bool) -> Image.Image:
    """A page as a screenshot shows one: lines of text, outlined shapes, and icons: squares on a grid of 8 pixels."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (480, 360), tuple(random.integers(200, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for row in range(20):
        draw.text(
            (16, 8 + 14 * row),
            f"{row}: the quick brown fox {seed} jumps over the lazy dog",
            fill=(20, 20, 20),
        )
    for _ in range(8):
        x, y, width, height = random.integers(8, 200, 4).tolist()
        colour = tuple(random.integers(0, 256, 3).tolist())
        (draw.rectangle if random.random() < 0.5 else draw.ellipse)(
            (x, y, x + width, y + height), outline=colour
        )
    for x in range(320, 448, 16) if icons else ():
        for y in range(32, 320, 16):
            draw.rectangle((x, y, x + 7, y + 7), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def damaged(clean: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    for quality in JPEG:
        buffer = io.BytesIO()
        clean.save(buffer, "JPEG", quality=quality)
        yield f"JPEG {quality}, saved as PNG", Image.open(buffer).convert("RGB")
    for sigma in NOISE:
        noise = np.random.default_rng(sigma).normal(0, sigma, (clean.height, clean.width, 3))
        values = np.clip(np.rint(np.asarray(clean) + noise), 0, 255)
        yield f"white noise, sigma {sigma}", Image.fromarray(values.astype(np.uint8))
    for radius in BLUR:
        yield f"Gaussian blur, sigma {radius:g}", clean.filter(ImageFilter.GaussianBlur(radius))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="the folder of the test sets (default: %(default)s)"
    )
    data = parser.parse_args().data
    found: dict[str, Counter[str | None]] = {}

    def count(kind: str, image: Any) -> None:
        found.setdefault(kind, Counter())[damage_of(Picture(np.asarray(image)))] += 1

    for name, damage_too, clean in pictures(data):
        count(f"clean, {name}", clean)
        if damage_too:
            for kind, image in damaged(clean):
                count(kind, image)
    print("| input | pictures | undamaged | compressed with loss | noisy | blurred |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, counts in found.items():
        columns = [counts[key] for key in (None, "compressed with loss", "noisy", "blurred")]
        print(f"| {kind} | {counts.total()} | {' | '.join(map(str, columns))} |")


if __name__ == "__main__":
    main()
