"""Damage as photographs have it, and drawn pictures; none of it by the code of train/."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d, fftconvolve

from photos.files import Array, eight_bit, jpeg


@dataclass(frozen=True)
class Made:
    """What becomes an input file: `image` saved as PNG, or as JPEG of `quality` (4:2:0)."""

    image: Array
    clean: Array | None
    quality: int | None = None


def normal(index: int, shape: tuple[int, ...]) -> Array:
    """The noise of picture `index`, as `restort evaluate` draws it with seed 0."""
    return np.random.Generator(np.random.PCG64([0, index])).standard_normal(shape)


def noisy(clean: Array, sigma: float, index: int) -> Array:
    """White noise, clipped and rounded to 8 bit."""
    return eight_bit(clean + sigma * normal(index, clean.shape))


def double_jpeg(clean: Array) -> Made:
    """Saved at quality 60, cropped by 3 rows and 5 columns (the grid shifts), saved at 75."""
    return Made(jpeg(clean, 60)[3:, 5:], clean[3:, 5:], 75)


YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def coarse_noise(clean: Array, sigma: float, index: int) -> Array:
    """Noise as a camera leaves it after its own noise reduction: correlated (0.8, 0.5, 0.26 at lags 1, 2, 4), and
    coarser in colour. Brightness and both colour differences have a standard deviation of about `sigma`."""

    def field(number: int, fine: float, large: float) -> Array:
        parts = []
        for k, (blur, share) in enumerate(((fine, 0.6), (large, 0.4))):
            white = normal(1000 * (index + 1) + 10 * number + k, clean.shape[:2])
            part = gaussian_filter(white, blur, mode="wrap")
            parts.append(part / part.std() * math.sqrt(share))
        return np.asarray(sum(parts))

    planes = np.stack([field(0, 0.8, 3.0), field(1, 1.5, 5.0), field(2, 1.5, 5.0)], 2)
    return eight_bit(clean + sigma * planes @ np.linalg.inv(YCC).T)


TO_CAMERA = np.array([[0.72, 0.22, 0.06], [0.14, 0.74, 0.12], [0.04, 0.24, 0.72]])  # linear sRGB to sensor
GAINS = np.array([2.0, 1.0, 1.7])  # white balance


def camera(clean: Array, index: int, shot: float = 1.2e-3, read_variance: float = 4e-6) -> Made:
    """A simulated camera: a soft lens, Bayer mosaic, shot and read noise, bilinear demosaicing, colour noise reduction,
    sharpening, JPEG 92. The truth is the developed scene without noise; of the mosaic only the noise is taken."""
    v = gaussian_filter(clean / 255, (0.7, 0.7, 0))
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    raw = linear @ TO_CAMERA.T / GAINS
    noise = normal(500 + index, raw.shape) * np.sqrt(shot * raw + read_variance)
    pure, spoilt = (_develop(_demosaic(plane)) for plane in (raw, np.clip(raw + noise, 0, 1)))
    difference = (spoilt - pure) @ YCC.T
    difference[..., 1:] = gaussian_filter(difference[..., 1:], (1.5, 1.5, 0))
    truth = _develop(raw)
    image = truth + difference @ np.linalg.inv(YCC).T
    image, truth = (x + 0.4 * (x - gaussian_filter(x, (1, 1, 0))) for x in (image, truth))
    return Made(eight_bit(255 * image), eight_bit(255 * truth), 92)


def _demosaic(raw: Array) -> Array:
    """Sample an RGGB mosaic of (H, W, 3) and interpolate it bilinearly."""
    height, width = raw.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    site = np.where(rows % 2 == 0, np.where(columns % 2 == 0, 0, 1), np.where(columns % 2 == 0, 1, 2))
    weights = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    planes = []
    for channel in range(3):
        mask = (site == channel).astype(float)
        weighted = convolve2d(raw[..., channel] * mask, weights, "same")
        planes.append(np.where(mask > 0, raw[..., channel], weighted / convolve2d(mask, weights, "same")))
    return np.stack(planes, 2)


def _develop(raw: Array) -> Array:
    linear = np.clip(raw * GAINS @ np.linalg.inv(TO_CAMERA).T, 0, 1)
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )


def web_picture(clean: Array, scale: int, index: int) -> Made:
    """A small picture as found on the web: blurred, reduced by area, sharpened, light noise, JPEG 80."""
    blurred = gaussian_filter(clean.astype(float), (0.5 * scale / 2, 0.5 * scale / 2, 0))
    height, width = clean.shape[0] // scale, clean.shape[1] // scale
    small = blurred.reshape(height, scale, width, scale, 3).mean((1, 3))
    small = small + 0.5 * (small - gaussian_filter(small, (1, 1, 0)))
    return Made(eight_bit(small + 3 * normal(index, small.shape)), clean, 80)


def disc(radius: float, side: int = 7, fine: int = 20) -> Array:
    """A defocus kernel (side, side): an even disc, anti-aliased, of sum 1."""
    grid = (np.arange(side * fine) + 0.5) / fine - side / 2
    inside = (grid[:, None] ** 2 + grid[None] ** 2 <= radius**2).astype(float)
    kernel = inside.reshape(side, fine, side, fine).mean((1, 3))
    return np.asarray(kernel / kernel.sum())


def blurred(clean: Array, kernel: Array, index: int, sigma: float) -> Made:
    """Convolved where the kernel lies inside the picture, plus white noise; 8 bit. The truth is cropped alike."""
    image = fftconvolve(clean.astype(float), kernel[:, :, None], mode="valid", axes=(0, 1))
    border = len(kernel) // 2
    truth = clean[border : border + image.shape[0], border : border + image.shape[1]]
    return Made(eight_bit(image + sigma * normal(index, image.shape)), truth)


WORDS = (
    "Restoration of photographs: 1234567890 (a + b) / 2 = c; The quick brown fox jumps over the lazy dog, and Sphinx "
    "of black quartz, judge my vow. Pack my box with five dozen liquor jugs; 48 x 36 mm, f/2.8, ISO 3200, 1/125 s. "
)
COLOURS = (((255, 255, 255), (0, 0, 0)), ((250, 240, 200), (150, 20, 20)), ((20, 40, 110), (255, 220, 60)))


def text(colour: int, height: int = 320, width: int = 416) -> Array:
    """Rendered text, anti-aliased; colour 0 is black on white."""
    ground, ink = COLOURS[colour]
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    top, position = 4, 0
    for size in (11, 11, 12, 13, 14, 16, 18, 20, 24, 28, 34, 40):
        font = ImageFont.load_default(size)
        line = (WORDS * 3)[position : position + 120]
        draw.text((6, top), line, ink, font)
        top, position = top + round(1.35 * size), position + 31
    return np.asarray(image)


def drawing(index: int, side: int = 320) -> Array:
    """Flat colours, outlines and thin lines, anti-aliased by drawing at four times the size."""
    draws = np.random.default_rng([7, index])
    image = Image.new("RGB", (4 * side, 4 * side), (245, 244, 238))
    draw = ImageDraw.Draw(image)
    for number in range(28):
        x, y = draws.integers(0, 4 * side, 2).tolist()
        w, h = draws.integers(60, side * 2, 2).tolist()
        fill = tuple(draws.integers(0, 256, 3).tolist())
        box = (x - w // 2, y - h // 2, x + w // 2, y + h // 2)
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=fill, outline=(20, 20, 20), width=8)
    for _ in range(20):
        ends = draws.integers(0, 4 * side, 4).tolist()
        draw.line(ends, fill=tuple(draws.integers(0, 256, 3).tolist()), width=int(draws.integers(4, 12)))
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
