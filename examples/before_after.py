"""Two pictures side by side, the smaller one enlarged by bicubic interpolation to the size of the other.

python examples/before_after.py BEFORE AFTER OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from restort.evaluation.resize import imresize
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture

GAP = 8


def before_after(before: Path, after: Path, output: Path) -> None:
    """Writes BEFORE left and AFTER right of a white gap; both must be 8-bit colour pictures."""
    left, right = read(before).pixels, read(after).pixels
    scale = right.shape[0] // left.shape[0]
    if scale > 1:
        left = np.clip(np.rint(imresize(left.astype(np.float64), scale)), 0, 255).astype(np.uint8)
    gap = np.full((right.shape[0], GAP, right.shape[2]), 255, np.uint8)
    write(output, Picture(np.concatenate([left, gap, right], axis=1)), overwrite=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    before_after(*map(Path, sys.argv[1:]))
