"""Scores of a model on photographs as people have them: camera noise, JPEG, blur, undamaged pictures.

    python benchmarks/evaluate_photos.py denoise --weights FILE [--all] [-o FILE.json] [--contact-sheets FOLDER]
    python benchmarks/evaluate_photos.py upscale --model elan-light-x4
    python benchmarks/evaluate_photos.py deblur --model restormer-small-deblur --sets motion sharp

Every input is an 8-bit file (PNG, or JPEG 4:2:0 by Pillow), restored with `Model.restore_file` into a PNG, which is
read by Pillow and compared with the truth. No code of train/ takes part: noise is NumPy's, JPEG is libjpeg's, the
camera is simulated here. Seeds are fixed. Made inputs and results are kept in --work.

Without --all the pictures of Kodak24 are middle crops and fewer, for a look within minutes; with --all they are whole.
PSNR is over all RGB values; for upscale it is on Y (BT.601) with `scale` pixels left out at the border, and "input"
is MATLAB-like bicubic enlargement. Each task has a reference model (--against); its scores are kept, too.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d, fftconvolve

import restort
from restort.evaluation.blur_kernels import read_kernels
from restort.evaluation.resize import imresize
from restort.utils.files import write_bytes

Array = np.ndarray[Any, Any]
SHARED = next(  # beside the checkout, or further up
    (found for up in Path(__file__).resolve().parents if (found := up / "shared/data/test").is_dir()),
    Path("data"),
)
INPUTS = 1  # version of the made inputs: raise it when a set is made in another way
EXACT = 99.0  # dB written for a result that equals its truth
AGAINST = {
    "denoise": "restormer-small-denoise",
    "upscale": "elan-light-x{}",
    "deblur": "restormer-small-deblur",
}


# ---------------------------------------------------------------- pictures and files


@dataclass(frozen=True)
class Sample:
    """An input file and its truth, a PNG `scale` times as large; `truth` is None for pictures only looked at."""

    name: str
    source: Path
    truth: Path | None


@dataclass(frozen=True)
class Made:
    """What becomes an input file: `image` saved as PNG, or as JPEG of `quality` (4:2:0)."""

    image: Array
    clean: Array | None
    quality: int | None = None


def read(path: Path) -> Array:
    """(H, W, 3) uint8; gray is repeated."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_gray(path: Path) -> Array:
    """(H, W) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def eight_bit(values: Array) -> Array:
    """Floats on the scale of 0..255, rounded and clipped to uint8."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def jpeg_bytes(image: Array, quality: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality, subsampling="4:2:0")
    return data.getvalue()


def jpeg(image: Array, quality: int) -> Array:
    """`image` after a JPEG round trip, 4:2:0."""
    with Image.open(io.BytesIO(jpeg_bytes(image, quality))) as decoded:
        return np.asarray(decoded.convert("RGB"))


def middle(image: Array, side: int | None, multiple: int = 1) -> Array:
    """The middle `side` x `side` pixels (all of it for None), then cropped to multiples of `multiple`."""
    if side is not None:
        height, width = image.shape[:2]
        top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
        image = image[top : top + side, left : left + side]
    height, width = (n // multiple * multiple for n in image.shape[:2])
    return image[:height, :width]


def normal(index: int, shape: tuple[int, ...]) -> Array:
    """The noise of picture `index`, as `restort evaluate` draws it with seed 0."""
    return np.random.Generator(np.random.PCG64([0, index])).standard_normal(shape)


def write_once(path: Path, data: Callable[[], bytes]) -> None:
    """Write a file atomically unless it exists."""
    if not path.is_file():
        write_bytes(path, data(), overwrite=True)


def png_bytes(image: Array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return data.getvalue()


# ---------------------------------------------------------------- degradations


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

    def field(number: int, fine: float, wide: float) -> Array:
        parts = []
        for k, (blur, share) in enumerate(((fine, 0.6), (wide, 0.4))):
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


# ---------------------------------------------------------------- sets


@dataclass(frozen=True)
class Needs:
    """What issue and cards ask of a set; None asks nothing. dB; `against` is over the reference model's result."""

    gain: float | None = None
    worst: float | None = None
    output: float | None = None
    against: float | None = None


@dataclass(frozen=True)
class Set:
    """`samples` yields (name, maker) lazily, so that a kept input file costs nothing."""

    note: str
    samples: Callable[[Bench], Iterator[tuple[str, Callable[[], Made]]]]
    needs: Needs = Needs()
    only: bool = False  # not part of the run without --sets or --all


@dataclass(frozen=True)
class Bench:
    """What is measured: the folder of test sets, how much of it, and the enlargement."""

    data: Path
    work: Path
    whole: bool
    scale: int = 1

    def kodak(self, side: int, quick: int, count: int = 24) -> Iterator[tuple[int, str, Callable[[], Array]]]:
        """(index, name, loader): whole pictures with --all, else the middle of `quick` of them, evenly chosen."""
        chosen = range(count) if self.whole else range(0, count, max(count // quick, 1))
        for i in chosen:
            path = self.data / "kodak24" / f"kodim{i + 1:02}.png"
            yield i, path.stem, lambda path=path: middle(read(path), None if self.whole else side)

    def samples(self, task: str, name: str) -> list[Sample]:
        """The set's files, made if need be."""
        some = "all" if self.whole else "quick"
        folder = self.work / f"inputs{INPUTS}" / f"{task}{self.scale if self.scale > 1 else ''}" / name / some
        found = []
        for label, make in SETS[task][name].samples(self):
            made: list[Made] = []

            def get(make: Callable[[], Made] = make, made: list[Made] = made) -> Made:
                if not made:
                    made.append(make())
                return made[0]

            known = folder / f"{label}.json"  # written last: says which files belong to the sample
            if not known.is_file():
                one = get()
                suffix = ".png" if one.quality is None else ".jpg"
                data = png_bytes(one.image) if one.quality is None else jpeg_bytes(one.image, one.quality)
                write_once(folder / f"{label}{suffix}", lambda data=data: data)
                if one.clean is not None:
                    clean = png_bytes(one.clean)
                    write_once(folder / f"{label}.truth.png", lambda clean=clean: clean)
                about = json.dumps({"suffix": suffix, "truth": one.clean is not None}).encode()
                write_once(known, lambda about=about: about)
            about = json.loads(known.read_text())
            truth = folder / f"{label}.truth.png" if about["truth"] else None
            found.append(Sample(label, folder / f"{label}{about['suffix']}", truth))
        if not found:
            sys.exit(f"no pictures for {name} in {self.data}; give the folder of the test sets with --data")
        return found


Samples = Iterator[tuple[str, Callable[[], Made]]]


def kodak_set(
    make: Callable[[Array, int], Made], side: int = 256, quick: int = 12
) -> Callable[[Bench], Samples]:
    """A set made of Kodak24 picture by picture."""

    def samples(bench: Bench) -> Samples:
        for i, name, load in bench.kodak(side, quick):
            yield name, lambda i=i, load=load: make(load(), i)

    return samples


def kodak_crops(make: Callable[[Array, int], Made]) -> Callable[[Bench], Samples]:
    """The middle 256 x 256 of every second picture of Kodak24, with --all as without."""

    def samples(bench: Bench) -> Samples:
        for i in range(0, 24, 2):
            path = bench.data / "kodak24" / f"kodim{i + 1:02}.png"
            yield path.stem, lambda i=i, path=path: make(middle(read(path), 256), i)

    return samples


def polyu(bench: Bench) -> Samples:
    for path in sorted((bench.data / "polyu_real_noise").glob("*_real.JPG")):
        mean = path.with_name(path.name.replace("_real", "_mean"))
        yield (
            path.stem.removesuffix("_real"),
            lambda path=path, mean=mean: Made(middle(read(path), 256), middle(read(mean), 256)),
        )


def gray_noise(bench: Bench) -> Samples:
    for i, path in enumerate(sorted((bench.data / "set12_gray").glob("*.png"))[: None if bench.whole else 6]):
        yield path.stem, lambda i=i, path=path: _gray(middle(read_gray(path), 256), i)


def _gray(clean: Array, index: int) -> Made:
    return Made(noisy(clean, 25, index), clean)


def texts(make: Callable[[Array, int], Made], colours: tuple[int, ...]) -> Callable[[Bench], Samples]:
    def samples(bench: Bench) -> Samples:
        for colour in colours:
            yield ("black", "red", "blue")[colour], lambda colour=colour: make(text(colour), colour)

    return samples


def drawings(make: Callable[[Array, int], Made]) -> Callable[[Bench], Samples]:
    def samples(bench: Bench) -> Samples:
        for i in range(3):
            yield f"drawing{i}", lambda i=i: make(drawing(i), i)

    return samples


def real_frames(bench: Bench) -> Samples:
    for path in sorted((bench.data / "real_blur").glob("*.png")):
        yield path.stem.split(".")[0], lambda path=path: Made(read(path), None)


def polyu_whole(bench: Bench) -> Samples:
    for path in sorted((bench.data / "polyu_real_noise").glob("*_real.JPG"))[::5]:
        yield path.stem.removesuffix("_real"), lambda path=path: Made(read(path), None, 95)


def small(folder: str, count: int | None, quality: int | None) -> Callable[[Bench], Samples]:
    """Low-resolution pictures of a test set, as PNG or as JPEG; made where the set does not bring them."""

    def samples(bench: Bench) -> Samples:
        scale = bench.scale
        high = bench.data / folder / "HR"
        paths = sorted((high if high.is_dir() else bench.data / folder).glob("*.png"))
        few = 8 if folder == "kodak24" and not bench.whole else count
        for path in paths[:: 3 if few == 8 else 1][:few]:

            def make(path: Path = path) -> Made:
                low = bench.data / folder / "LR_bicubic" / f"X{scale}" / path.name
                truth = middle(read(path), None, scale)
                image = read(low) if low.is_file() else np.asarray(imresize(truth, 1 / scale))
                return Made(image, truth[: image.shape[0] * scale, : image.shape[1] * scale], quality)

            yield path.stem, make

    return samples


def web(bench: Bench) -> Samples:
    for i, name, load in bench.kodak(512, 4):
        yield name, lambda i=i, load=load: web_picture(middle(load(), None, bench.scale), bench.scale, i)


def tiny_text(bench: Bench) -> Samples:
    for colour in range(3):
        yield (
            ("black", "red", "blue")[colour],
            lambda colour=colour: Made(
                np.asarray(imresize(text(colour), 1 / bench.scale)),
                middle(text(colour), None, bench.scale),
                75,
            ),
        )


def motion(bench: Bench) -> Samples:
    """Levin's eight kernels, each on every picture; in the quick form picture i meets kernel i modulo 8."""
    kernels = read_kernels(bench.data / "kernels" / "Levin09.mat")
    for i, name, load in bench.kodak(384, 24):
        for k, kernel in enumerate(kernels):
            if bench.whole or k == i % 8:
                yield (
                    f"{name}-k{k + 1}",
                    lambda i=i, kernel=kernel, load=load: blurred(load(), kernel, i, 2.55),
                )


def motion_jpeg(bench: Bench) -> Samples:
    """Every third blurred picture (of all, every 24th), saved as JPEG 75."""
    for name, make in list(motion(bench))[:: 24 if bench.whole else 3]:
        yield name, lambda make=make: replace(make(), quality=75)


def text_motion(colours: tuple[int, ...]) -> Callable[[Bench], Samples]:
    def samples(bench: Bench) -> Samples:
        kernels = read_kernels(bench.data / "kernels" / "Levin09.mat")
        for colour in colours:
            for k in (0, 4):
                yield (
                    f"{('black', 'red', 'blue')[colour]}-k{k + 1}",
                    lambda colour=colour, kernel=kernels[k]: blurred(text(colour), kernel, colour, 1.0),
                )

    return samples


SAVED = {q: lambda x, i, q=q: Made(x, x, q) for q in (20, 40, 75, 95)}
KEEP = lambda x, i: Made(x, x)  # noqa: E731
JPEG_UP, CLEAN_UP = Needs(against=0.9), Needs(against=-0.3)

SETS: dict[str, dict[str, Set]] = {
    "denoise": {
        "polyu": Set("PolyU, 20 real pairs, middle 256, PNG", polyu, Needs(gain=2.6, worst=-0.1)),
        "s15-jpeg95": Set(
            "12 Kodak crops of 256, white noise 15, JPEG 95",
            kodak_crops(lambda x, i: Made(noisy(x, 15, i), x, 95)),
            Needs(gain=6.0),
        ),
        "jpeg20": Set("Kodak24, JPEG 20", kodak_set(SAVED[20]), Needs(gain=1.6)),
        "jpeg40": Set("Kodak24, JPEG 40", kodak_set(SAVED[40]), Needs(gain=1.6)),
        "double-jpeg": Set(
            "Kodak24, JPEG 60, moved by (3, 5), JPEG 75",
            kodak_set(lambda x, i: double_jpeg(x)),
            Needs(gain=0.8),
        ),
        **{
            f"white{s}": Set(
                f"Kodak24, white noise {s}, PNG",
                kodak_set(lambda x, i, s=s: Made(noisy(x, s, i), x), quick=8),
                Needs(against=-0.15),
            )
            for s in (15, 25, 50)
        },
        "clean": Set("Kodak24, undamaged", kodak_set(KEEP, quick=8), Needs(output=55)),
        "camera": Set(
            "Kodak24 through a simulated camera, JPEG 92", kodak_set(lambda x, i: camera(x, i), quick=6)
        ),
        "coarse": Set(
            "Kodak24, correlated noise 6, colour coarser, JPEG 90",
            kodak_set(lambda x, i: Made(coarse_noise(x, 6, i), x, 90), quick=6),
        ),
        "gray25": Set("Set12 gray, white noise 25, gray PNG", gray_noise),
        "text": Set("rendered text, undamaged", texts(KEEP, (0, 1, 2))),
        "text-jpeg40": Set("rendered text, JPEG 40", texts(SAVED[40], (0, 1, 2))),
        "drawing-jpeg40": Set("flat drawings, JPEG 40", drawings(SAVED[40])),
        "look-polyu": Set("whole PolyU pictures saved as JPEG 95, to look at", polyu_whole, only=True),
    },
    "upscale": {
        "set5": Set("Set5", small("set5", None, None), CLEAN_UP),
        "set14": Set("Set14", small("set14", None, None), CLEAN_UP),
        "bsd100": Set("BSD100, first 20", small("bsd100", 20, None), CLEAN_UP),
        "bsd100-all": Set("BSD100", small("bsd100", None, None), CLEAN_UP, only=True),
        "kodak24": Set("Kodak24", small("kodak24", None, None), CLEAN_UP),
        "set14-jpeg75": Set("Set14, LR saved as JPEG 75", small("set14", None, 75), JPEG_UP),
        "bsd100-jpeg75": Set("BSD100, first 20, LR saved as JPEG 75", small("bsd100", 20, 75), JPEG_UP),
        "kodak24-jpeg75": Set("Kodak24, LR saved as JPEG 75", small("kodak24", None, 75), JPEG_UP),
        "web": Set("Kodak24 blurred, reduced, sharpened, noise 3, JPEG 80", web),
        "text-jpeg75": Set("rendered text reduced, JPEG 75", tiny_text),
    },
    "deblur": {
        "motion": Set("Kodak24, 8 motion kernels, noise 2.55", motion, Needs(gain=3.5)),
        "sharp": Set("Kodak24, undamaged", kodak_set(KEEP, 384, 8), Needs(output=45)),
        "sharp-jpeg75": Set("Kodak24, JPEG 75", kodak_set(SAVED[75], 384, 8), Needs(gain=-0.2)),
        "defocus": Set(
            "Kodak24, disc of radius 2.5, 8 bit",
            kodak_set(lambda x, i: blurred(x, disc(2.5), i, 0), 384, 8),
            Needs(gain=2.5),
        ),
        "defocus-noise": Set(
            "Kodak24, disc of radius 2.5, noise 2.55",
            kodak_set(lambda x, i: blurred(x, disc(2.5), i, 2.55), 384, 8),
        ),
        "motion-jpeg75": Set("Kodak24, some motion kernels, noise 2.55, JPEG 75", motion_jpeg),
        "text": Set("rendered text, black on white, sharp", texts(KEEP, (0,))),
        "text-motion": Set("rendered text, black on white, motion, noise 1", text_motion((0,))),
        "text-colour": Set("rendered text, coloured, sharp", texts(KEEP, (1, 2))),
        "text-colour-motion": Set("rendered text, coloured, motion, noise 1", text_motion((1, 2))),
        "look-real": Set("four real frames, to look at", real_frames, only=True),
    },
}


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Score:
    """One picture; PSNR in dB, None without a truth. Colours are mean |Cb| and |Cr| where the truth is gray."""

    name: str
    size: tuple[int, int]
    input: float | None
    output: float | None
    seconds: float
    input_colour: float | None = None
    output_colour: float | None = None


@dataclass
class Row:
    """One set: means over its pictures; `worst` is the least gain (of undamaged inputs the least output PSNR)."""

    set: str
    note: str
    pictures: list[Score]
    needs: Needs
    seconds: float
    against: float | None = None
    tiles: list[str] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        values = [getattr(score, name) for score in self.pictures]
        return None if None in values or not values else statistics.fmean(values)

    @property
    def undamaged(self) -> bool:
        return self.mean("input") == EXACT

    @property
    def gain(self) -> float | None:
        before, after = self.mean("input"), self.mean("output")
        return None if before is None or after is None or self.undamaged else after - before

    @property
    def worst(self) -> tuple[str, float] | None:
        if self.mean("output") is None:
            return None
        least = [(s.output - (0 if self.undamaged else s.input), s.name) for s in self.pictures]  # type: ignore[operator]
        value, name = min(least)
        return name, value

    def verdicts(self) -> list[tuple[str, bool]]:
        """(what is asked, whether it is met)."""
        found: list[tuple[str, float, float | None]] = []
        worst, output = self.worst, self.mean("output")
        over = None if self.against is None or output is None else output - self.against
        for label, need, value in (
            ("gain", self.needs.gain, self.gain),
            ("worst", self.needs.worst, worst[1] if worst else None),
            ("output", self.needs.output, output),
            ("over ref", self.needs.against, over),
        ):
            if need is not None and value is not None:
                found.append((f"{label} >= {need:g}", need, value))
        return [(label, round(value or 0, 2) >= need) for label, need, value in found]

    def to_json(self) -> dict[str, Any]:
        worst = self.worst
        numbers = {
            "input": self.mean("input"),
            "output": self.mean("output"),
            "gain": self.gain,
            "worst": worst[1] if worst else None,
            "against": self.against,
            "input_colour": self.mean("input_colour"),
            "output_colour": self.mean("output_colour"),
            "seconds": self.seconds,
        }
        return {
            "set": self.set,
            "note": self.note,
            "pictures": len(self.pictures),
            **{name: None if value is None else round(value, 4) for name, value in numbers.items()},
            "worst_picture": worst[0] if worst else None,
            "needs": dict(self.verdicts()),
            "tiles": self.tiles,
            "rows": [asdict(score) for score in self.pictures],
        }


def psnr(a: Array, b: Array) -> float:
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return EXACT if error == 0 else min(10 * math.log10(255**2 / error), EXACT)


def luma(image: Array, border: int) -> Array:
    """Y in 16..235 (BT.601), not rounded, without `border` pixels on every side."""
    inner = image[border:-border, border:-border].astype(float)
    return np.asarray(inner @ np.array([65.481, 128.553, 24.966]) / 255 + 16)


def compare(image: Array, truth: Array, task: str, scale: int) -> float:
    if task == "upscale":
        return psnr(luma(image, scale), luma(truth, scale))
    return psnr(image, truth)


def colour(image: Array) -> float:
    """Mean |Cb| and |Cr| of 255: 0 for a gray picture."""
    return float(np.abs(image.astype(float) @ YCC[1:].T).mean())


def enlarged(image: Array, scale: int) -> Array:
    return np.asarray(imresize(image, scale)) if scale > 1 else image


class Network:
    """The model under test, and perhaps one that goes before it."""

    def __init__(self, models: list[restort.Model], work: Path) -> None:
        self.models = models
        digests = "-".join(model.weights.digest[:12] for model in models)
        self.label = "+".join(model.name for model in models)
        last = models[-1]
        self.key = f"{digests}-{last.backend}-{last.precision}"
        self.folder = work / "outputs" / f"{self.label}-{digests}"
        self.scale = last.scale

    def restore(self, source: Path, target: Path) -> str:
        """Restore a file; the tiling of the last model comes back."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for model in self.models[:-1]:
            between = target.with_name(f"{target.stem}.{model.name}.png")
            model.restore_file(source, between, overwrite=True)
            source = between
        return self.models[-1].restore_file(source, target, overwrite=True).tile


def score(network: Network, sample: Sample, target: Path, task: str) -> tuple[Score, str]:
    start = time.perf_counter()
    tile = network.restore(sample.source, target)
    seconds = time.perf_counter() - start
    image = read(sample.source)
    size = (image.shape[1], image.shape[0])
    if sample.truth is None:
        return Score(sample.name, size, None, None, seconds), tile
    truth, output = read(sample.truth), read(target)
    before = enlarged(image, network.scale)
    gray = bool((truth == truth[..., :1]).all())
    found = Score(
        sample.name,
        size,
        compare(before, truth, task, network.scale),
        compare(output, truth, task, network.scale),
        seconds,
        colour(before) if gray else None,
        colour(output) if gray else None,
    )
    return found, tile


def measure(bench: Bench, network: Network, task: str, name: str) -> Row:
    start = time.perf_counter()
    scores, tiles = [], []
    samples = bench.samples(task, name)
    for number, sample in enumerate(samples, 1):
        if sys.stderr.isatty():
            print(f"\r\033[K{name} {number}/{len(samples)}", end="", file=sys.stderr, flush=True)
        one, tile = score(network, sample, target_of(bench, network, name, sample), task)
        scores.append(one)
        tiles.append(tile)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    chosen = SETS[task][name]
    return Row(name, chosen.note, scores, chosen.needs, time.perf_counter() - start, tiles=sorted(set(tiles)))


def target_of(bench: Bench, network: Network, name: str, sample: Sample) -> Path:
    return network.folder / name / ("all" if bench.whole else "quick") / f"{sample.name}.png"


class Reference:
    """The reference model's mean output PSNR per set; kept by weights and made inputs, loaded only where needed."""

    def __init__(self, bench: Bench, task: str, load: Callable[[], Network], key: str) -> None:
        self.bench, self.task, self.load, self.key = bench, task, load, key
        self.network: Network | None = None

    def output(self, name: str) -> float | None:
        some = "all" if self.bench.whole else "quick"
        path = self.bench.work / "scores" / f"{self.key}-{self.task}-{name}-{some}-{INPUTS}.json"
        if not path.is_file():
            self.network = self.network or self.load()
            value = measure(self.bench, self.network, self.task, name).mean("output")
            write_once(path, lambda: json.dumps(value).encode())
        kept: float | None = json.loads(path.read_text())
        return kept


# ---------------------------------------------------------------- report


def line(row: Row) -> str:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    output, worst = row.mean("output"), row.worst
    over = None if row.against is None or output is None else output - row.against
    met = ", ".join(f"{label} {'yes' if good else 'NO'}" for label, good in row.verdicts())
    before, after = row.mean("input_colour"), row.mean("output_colour")
    stains = "" if after is None or before is None else f" colour {before:.2f} -> {after:.2f}"
    return (
        f"{row.set:20} {number(row.mean('input'), '.2f'):>6} {number(output, '.3f'):>7} {number(row.gain, '+.3f'):>7} "
        f"{number(worst[1] if worst else None, '+.2f'):>7} {number(over, '+.3f'):>7} {len(row.pictures):4} "
        f"{row.seconds:6.1f}  {met}{stains}"
    ).rstrip()


HEAD = f"{'set':20} {'input':>6} {'output':>7} {'gain':>7} {'worst':>7} {'over':>7} {'pics':>4} {'s':>6}"


def sheet(
    path: Path, bench: Bench, row: Row, networks: list[Network], task: str, count: int, side: int
) -> None:
    """Middle crops at 100 %: input, result of each network, truth; the pictures with the least gain come first."""
    font = ImageFont.load_default(13)
    strips: list[Image.Image] = []
    samples = {sample.name: sample for sample in bench.samples(task, row.set)}
    gains = {s.name: (s.output or 0) - (s.input or 0) for s in row.pictures}
    for name in sorted(gains, key=lambda name: gains[name])[:count]:
        sample = samples[name]
        parts = [("input", enlarged(read(sample.source), networks[0].scale))]
        for network in networks:
            target = target_of(bench, network, row.set, sample)
            if target.is_file():
                parts.append((network.label, read(target)))
        truth = None if sample.truth is None else read(sample.truth)
        if truth is not None:
            parts.append(("truth", truth))
        strip = Image.new("RGB", (len(parts) * (side + 4), side + 20), (40, 40, 40))
        draw = ImageDraw.Draw(strip)
        for k, (label, image) in enumerate(parts):
            strip.paste(Image.fromarray(middle(image, side)), (k * (side + 4), 18))
            value = ""
            if truth is not None and label != "truth":
                value = f"{compare(image, truth, task, networks[0].scale):.2f} "
            prefix = f"{row.set} {name}: " if k == 0 else ""
            draw.text((k * (side + 4) + 2, 1), f"{prefix}{value}{label}"[:40], (255, 255, 255), font)
        strips.append(strip)
    picture = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), (40, 40, 40))
    for number, strip in enumerate(strips):
        picture.paste(strip, (0, number * strip.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=tuple(SETS))
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--weights", type=Path, metavar="FILE")
    which.add_argument("--model", metavar="NAME")
    parser.add_argument("--before", metavar="NAME|FILE", help="a model that restores the input first")
    parser.add_argument(
        "--against", metavar="NAME|FILE|none", help="the reference (default: the task's shipped model)"
    )
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these; `list` names them")
    parser.add_argument("--all", action="store_true", help="whole pictures, all of them")
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="the folder of the test sets (default: %(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "restort-photos", metavar="FOLDER"
    )
    parser.add_argument("--backend", default="openvino", help="(default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--contact-sheets", type=Path, metavar="FOLDER", help="writes a PNG per set")
    parser.add_argument("--sheet-pictures", type=int, default=3, metavar="N", help="of each set (default: 3)")
    parser.add_argument(
        "--sheet-crop", type=int, default=256, metavar="N", help="pixels a side (default: 256)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def without_folder(word: str) -> str:
    """An absolute path as its name, so that records do not tell where this machine keeps its files."""
    return Path(word).name if Path(word).is_absolute() else word


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    sets = SETS[args.task]
    if args.sets == ["list"]:
        print("\n".join(f"{name:20} {one.note}" for name, one in sets.items()))
        return
    if unknown := set(args.sets or ()) - set(sets):
        sys.exit(f"unknown sets: {', '.join(sorted(unknown))}; known: {', '.join(sets)}")

    def load(model: str | Path) -> restort.Model:
        return restort.load(
            model, backend=args.backend, precision=args.precision, threads=args.threads, say=lambda line: None
        )

    before = [load(args.before)] if args.before else []
    network = Network([*before, load(args.weights or args.model)], args.work)
    if (network.scale > 1) != (args.task == "upscale"):
        sys.exit(f"{network.label} enlarges {network.scale} times: not a model for {args.task}")
    bench = Bench(args.data, args.work, args.all, network.scale)
    reference, networks = None, [network]
    if args.against != "none":
        name = args.against or AGAINST[args.task].format(network.scale)
        model = load(name)
        against = Network([model], args.work)
        if against.folder != network.folder:
            reference = Reference(bench, args.task, lambda: against, against.key)
            networks = [against, network]
    names = args.sets or [name for name, one in sets.items() if args.all or not one.only]
    model = network.models[-1]
    print(
        f"{args.task} {network.label} ({model.backend} {model.precision}), {'all' if args.all else 'quick'}"
    )
    print(HEAD, flush=True)
    rows = []
    for name in names:
        row = measure(bench, network, args.task, name)
        if reference is not None:
            row.against = reference.output(name)
        rows.append(row)
        print(line(row), flush=True)
        if args.contact_sheets:
            path = args.contact_sheets / f"{args.task}-{name}.png"
            sheet(path, bench, row, networks, args.task, args.sheet_pictures, args.sheet_crop)
    if args.output:
        record = {
            "task": args.task,
            "model": network.label,
            "weights_sha256": [one.weights.digest for one in network.models],
            "backend": model.backend,
            "precision": model.precision,
            "pictures": "all" if args.all else "quick",
            "reference": networks[0].label if reference is not None else None,
            "inputs": {"version": INPUTS, "pillow": Image.__version__, "numpy": np.__version__},
            "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            "sets": [row.to_json() for row in rows],
            "command": [without_folder(word) for word in arguments or sys.argv[1:]],
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
