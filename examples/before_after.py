"""Put two pictures side by side; a smaller first one is enlarged by bicubic interpolation to the size of the second.

python examples/before_after.py BEFORE AFTER OUTPUT [LEFT,TOP,WIDTH,HEIGHT]

With four numbers only that part of the second picture, and the same part of the first, is shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from restort.evaluation.resize import imresize
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture

GAP = 8  # white pixels between the pictures


def before_after(
    before: Path, after: Path, output: Path, crop: tuple[int, int, int, int] | None = None
) -> None:
    """Write BEFORE to the left of AFTER; both must be 8-bit colour pictures.

    crop   (left, top, width, height) in pixels of AFTER; None for the whole picture
    """
    left, right = read(before).pixels, read(after).pixels
    scale = right.shape[0] // left.shape[0]
    if scale > 1:
        left = np.clip(np.rint(imresize(left.astype(np.float64), scale)), 0, 255).astype(np.uint8)
    if crop is not None:
        x, y, width, height = crop
        left, right = (pixels[y : y + height, x : x + width] for pixels in (left, right))
    gap = np.full((right.shape[0], GAP, right.shape[2]), 255, np.uint8)
    write(output, Picture(np.concatenate([left, gap, right], axis=1)), overwrite=True)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (3, 4):
        sys.exit(__doc__)
    paths = [Path(argument) for argument in arguments[:3]]
    crop = None
    if len(arguments) == 4:
        x, y, width, height = (int(number) for number in arguments[3].split(","))
        crop = x, y, width, height
    before_after(paths[0], paths[1], paths[2], crop)


if __name__ == "__main__":
    main(sys.argv[1:])
