"""Restore an animation frame by frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from restort.imaging.animation import Animation
from restort.imaging.picture import Picture
from restort.runner import Progress

Restore: TypeAlias = Callable[[Picture, "Progress | None"], tuple[Picture, str]]


class RestoredFrames:
    """Iterate over the restored frames; each is computed when it is requested.

    last   the newest frame, and 'whole', 'exact' or the 'WIDTHxHEIGHT' of its tiles
    """

    def __init__(
        self, picture: Picture, animation: Animation, progress: Progress | None, restore: Restore
    ) -> None:
        """`picture` has the metadata; `restore` restores one frame and reports its tiles."""
        self.picture, self.animation, self.progress, self.restore = picture, animation, progress, restore
        self.last: tuple[Picture, str] = picture, ""

    def __iter__(self) -> Iterator[Picture]:
        before: Picture | None = None
        for index, (pixels, alpha) in enumerate(self.animation.frames()):
            frame = dataclasses.replace(self.picture, pixels=pixels, alpha=alpha)
            if before is None or not _same_pixels(before, frame):  # repeated frames are computed once
                self.last = self.restore(frame, self._counted(index))
            before = frame
            yield self.last[0]

    def _counted(self, index: int) -> Progress | None:
        """Return the progress callback for the tiles of frame `index`, which reports progress through all frames."""
        progress, count = self.progress, len(self.animation)
        return progress and (lambda done, total: progress(index * total + done, count * total))


def _same_pixels(a: Picture, b: Picture) -> bool:
    if a.alpha is not None and b.alpha is not None and not np.array_equal(a.alpha, b.alpha):
        return False
    return np.array_equal(a.pixels, b.pixels)
