"""Rendered text, screens and drawings: clean pictures of the kind that photographs do not teach."""

from __future__ import annotations

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


def drawing(seed: int, side: int = 704) -> np.ndarray:
    """A page (side, side, 3) uint8 of text lines, shapes and gradients; the same seed draws the same page."""
    random = np.random.default_rng(seed)
    ground, ink = _colours(random)
    page = Image.new("RGB", (side, side), ground)
    if random.random() < 0.3:
        page = _gradient(random, side)
    pen = ImageDraw.Draw(page)
    for _ in range(int(random.integers(3, 16))):
        _shape(pen, random, side)
    top = int(random.integers(4, 24))
    while top < side - 12:
        size = int(random.choice([9, 11, 12, 14, 16, 20, 28, 44]))
        font = ImageFont.load_default(size)
        left = int(random.integers(-20, side // 3))
        colour = ink if random.random() < 0.8 else _any(random)
        pen.text((left, top), _words(random, side // max(4, size // 2)), font=font, fill=colour)
        top += int(size * random.uniform(1.15, 2.2))
    return np.asarray(page)


def _any(random: np.random.Generator) -> Colour:
    r, g, b = (int(v) for v in random.integers(0, 256, 3))
    return r, g, b


def _colours(random: np.random.Generator) -> tuple[Colour, Colour]:
    """(ground, ink): black on white most often, then white on black, then any two that differ in brightness."""
    kind = random.random()
    if kind < 0.45:
        return (255, 255, 255), (0, 0, 0)
    if kind < 0.6:
        return (24, 26, 30), (230, 230, 225)
    while True:
        ground, ink = _any(random), _any(random)
        if abs(sum(ground) - sum(ink)) > 240:
            return ground, ink


def _words(random: np.random.Generator, length: int) -> str:
    letters = string.ascii_lowercase * 3 + string.ascii_uppercase + string.digits + ".,:;-()%/"
    words = (
        "".join(random.choice(list(letters), int(random.integers(1, 10)))) for _ in range(length // 3 + 1)
    )
    return " ".join(words)


def _gradient(random: np.random.Generator, side: int) -> Image.Image:
    a, b = (np.array(_any(random), np.float64) for _ in range(2))
    angle = random.uniform(0, 6.2832)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
    return Image.fromarray(np.round(a + (b - a) * share).astype(np.uint8))


def _shape(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int) -> None:
    x, y = (int(v) for v in random.integers(0, side, 2))
    w, h = (int(v) for v in random.integers(6, side // 3, 2))
    fill = _any(random) if random.random() < 0.7 else None
    kind = random.integers(0, 4)
    width = int(random.integers(1, 6))
    if kind == 0:
        pen.rectangle((x, y, x + w, y + h), fill=fill, outline=_any(random), width=width)
    elif kind == 1:
        pen.ellipse((x, y, x + w, y + h), fill=fill, outline=_any(random), width=width)
    elif kind == 2:
        pen.line((x, y, x + w - side // 6, y + h), fill=_any(random), width=width)
    else:
        pen.polygon([(x, y), (x + w, y + h // 3), (x + w // 2, y + h)], fill=fill, outline=_any(random))
