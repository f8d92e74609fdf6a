"""Degradations of test pictures: noise and JPEG compression. `str()` of each names its condition."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.errors import UsageError

Array: TypeAlias = NDArray[Any]
Uint8: TypeAlias = NDArray[np.uint8]

SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")


class Noise(Protocol):
    """Noise of one kind and strength; `str()` names it."""

    def add(self, image: Uint8, normal: Callable[[tuple[int, ...]], NDArray[np.float64]]) -> Array:
        """Return `image` (H, W, C) with noise: float64 on the scale of [0, 255], neither clipped nor rounded.

        normal(shape) draws standard normal numbers.
        """
        ...


@dataclass(frozen=True)
class WhiteNoise:
    """Gaussian noise of standard deviation `sigma` (of 255), independent between pixels and channels."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 255:
            raise UsageError(f"the noise levels must lie between 0 and 255, not {self.sigma:g}")

    def __str__(self) -> str:
        return f"sigma {self.sigma:g}"

    def add(self, image: Uint8, normal: Callable[[tuple[int, ...]], NDArray[np.float64]]) -> Array:
        return np.asarray(image + self.sigma * normal(image.shape))


@dataclass(frozen=True)
class PoissonGaussNoise:
    """Noise of variance a * x + b, where x is the pixel in [0, 1] (Foi et al., IEEE TIP 17, 2008).

    a   variance per unit of brightness: the shot noise
    b   variance at black: the read noise
    Both parts are drawn as one normal distribution; the sum of a few dozen photons is already close to normal.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (0 <= self.a <= 1 and 0 <= self.b <= 1):
            raise UsageError(
                f"the variances of --poisson-gauss must lie between 0 and 1, not {self.a:g},{self.b:g}"
            )

    @staticmethod
    def parse(text: str) -> PoissonGaussNoise:
        """Parse 'A,B', such as '0.01,0.0004'."""
        try:
            a, b = (float(part) for part in text.split(","))
        except ValueError:
            raise UsageError(f"{text!r} is not A,B; give two variances, such as 0.01,0.0004") from None
        return PoissonGaussNoise(a, b)

    def __str__(self) -> str:
        return f"poisson-gauss {self.a:g},{self.b:g}"

    def add(self, image: Uint8, normal: Callable[[tuple[int, ...]], NDArray[np.float64]]) -> Array:
        deviation = np.sqrt(self.a * (image / 255) + self.b)
        return np.asarray(image + 255 * deviation * normal(image.shape))


@dataclass(frozen=True)
class Jpeg:
    """A JPEG round trip by Pillow (libjpeg): `quality` 1 to 100, chroma subsampled as `subsampling` says."""

    quality: int
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UsageError(f"the quality of a JPEG must lie between 1 and 100, not {self.quality}")
        if self.subsampling not in SUBSAMPLINGS:
            raise UsageError(
                f"{self.subsampling!r} is no chroma subsampling known here; use {', '.join(SUBSAMPLINGS)}"
            )

    @staticmethod
    def parse(text: str) -> Jpeg:
        """Parse 'QUALITY' or 'QUALITY:SUBSAMPLING', such as '75' or '95:4:4:4'."""
        quality, _, subsampling = text.partition(":")
        if not quality.isdecimal():
            raise UsageError(f"{text!r} is no JPEG setting; give a quality, such as 75 or 75:4:4:4")
        return Jpeg(int(quality), subsampling or "4:2:0")

    def __str__(self) -> str:
        return f"jpeg {self.quality} {self.subsampling}"

    def apply(self, image: Array) -> Uint8:
        """Round `image` (H, W, 1 or 3) on the scale of [0, 255] to 8 bits, compress and decode it; return uint8."""
        from PIL import Image

        pixels = to_8_bit(image)
        gray = pixels.shape[2] == 1
        data = io.BytesIO()
        picture = Image.fromarray(pixels[:, :, 0] if gray else pixels)
        chroma = {} if gray else {"subsampling": self.subsampling}
        picture.save(data, "JPEG", quality=self.quality, **chroma)
        with Image.open(data) as decoded:
            return np.asarray(decoded).reshape(pixels.shape)


def to_8_bit(image: Array) -> Uint8:
    """Round values on the scale of [0, 255] to the nearest integer (ties to even) and clip them; return uint8."""
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)
