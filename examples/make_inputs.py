"""Make the example inputs from undamaged photographs.

python examples/make_inputs.py OSPREY.jpg

The damage comes from NumPy and Pillow alone, not from the code that trained the models. Three photographs are those of
scikit-image (`skimage.data`); the fourth is named on the command line (examples/README.md says where it is from).
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

HERE = Path(__file__).resolve().parent
FULL_WELL = 300.0  # electrons at white: a small sensor at a high ISO
READ_NOISE = 4.0  # electrons
GAINS = np.array([2.0, 1.0, 1.6])  # white balance of red, green and blue

Floats = NDArray[np.float64]


def to_linear(srgb: NDArray[np.uint8]) -> Floats:
    """sRGB, 8 bit, to linear light in [0, 1]."""
    x = srgb / 255.0
    return np.asarray(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4))


def to_srgb(linear: Floats) -> NDArray[np.uint8]:
    """Linear light to sRGB, 8 bit."""
    x = linear.clip(0, 1)
    encoded = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def smooth(plane: Floats) -> Floats:
    """Weighted sum over 3 x 3 pixels, weights 1-2-1 in both directions, divided by 4; edges are mirrored."""
    for axis in (0, 1):
        width = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.moveaxis(np.pad(plane, width, mode="reflect"), axis, 0)
        plane = np.moveaxis(padded[:-2] + 2 * padded[1:-1] + padded[2:], 0, axis) / 2
    return plane


def camera(photograph: NDArray[np.uint8], seed: int = 1) -> NDArray[np.uint8]:
    """The photograph as a camera in dim light makes it: RGGB mosaic, shot and read noise, bilinear demosaicing."""
    generator = np.random.default_rng(seed)
    raw = to_linear(photograph) / GAINS
    electrons = generator.poisson(raw * FULL_WELL) + generator.normal(0, READ_NOISE, raw.shape)
    rows, columns = np.indices(raw.shape[:2]) % 2
    colour = rows + columns  # 0 red, 1 green, 2 blue
    planes = []
    for channel in range(3):
        sampled = (colour == channel).astype(np.float64)
        planes.append(smooth(sampled * electrons[..., channel]) / smooth(sampled))
    return to_srgb(np.stack(planes, 2) / FULL_WELL * GAINS)


def shake(photograph: NDArray[np.uint8], seed: int = 2) -> NDArray[np.uint8]:
    """The photograph blurred along a curved path of 13 pixels in linear light, with noise of sigma 2 (of 255)."""
    time = np.linspace(-1, 1, 60)
    down, right = (
        3.5 * (time**2 - (time**2).mean()) + 2.0 * time,
        6.5 * time,
    )  # centred: nothing moves on average
    linear = to_linear(photograph)
    fy, fx = np.fft.fftfreq(linear.shape[0]), np.fft.fftfreq(linear.shape[1])
    waves = -2j * np.pi * (down[:, None, None] * fy[None, :, None] + right[:, None, None] * fx[None, None, :])
    transfer = np.exp(waves).mean(0)[..., None]
    blurred = np.fft.ifft2(np.fft.fft2(linear, axes=(0, 1)) * transfer, axes=(0, 1)).real
    noise = np.random.default_rng(seed).normal(0, 2, blurred.shape)
    return np.rint((to_srgb(blurred) + noise).clip(0, 255)).astype(np.uint8)


def compress(pixels: NDArray[np.uint8], name: str, quality: int) -> None:
    """Write a JPEG with 4:2:0 chroma."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    (HERE / name).write_bytes(stream.getvalue())


def main(osprey: Path) -> None:
    coffee, astronaut, cat = data.coffee(), data.astronaut(), data.chelsea()
    compress(camera(coffee[20:340, 200:584]), "coffee_noisy.jpg", 92)
    compress(astronaut[:320, 100:484], "astronaut_quality30.jpg", 30)
    # the whole picture is shaken and its border, where the blur wraps around, is cut off
    Image.fromarray(shake(cat)[16:-16, 16:-16][:, :400]).save(HERE / "cat_shaken.png")
    small = Image.open(osprey).convert("RGB").resize((320, 180), Image.Resampling.BICUBIC)
    compress(np.asarray(small), "osprey_small.jpg", 85)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
