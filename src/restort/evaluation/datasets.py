"""Test sets: the pictures of a folder, and the network inputs made of them.

Layouts; the first that fits is taken:

    HR/ and LR_bicubic/X2, X3, X4   super-resolution as published: NAME.png beside NAMEx2.png (or NAME.png)
    *_real.* beside *_mean.*        pairs of a real noisy photograph and its reference
    input/ beside target/           pairs of one name
    pictures (or HR/ alone)         clean pictures, from which the task's inputs are made

Inputs made of clean pictures (8 bit, values in [0, 255]), by task:

    upscale   cropped to multiples of the scale, reduced as MATLAB's imresize does, 8 bit
    denoise   plus sigma * n with n standard normal, or plus noise whose variance depends on the brightness; float,
              neither clipped nor rounded, or 8 bit with `eight_bit`
    deblur    convolved with a kernel where the kernel lies inside the picture (the reference is cropped alike), plus
              noise as above. The kernel is first moved by whole pixels until its centroid lies in the middle, because
              a blurred picture does not show where the origin was

Inputs of every kind may then be compressed as JPEG, which rounds them to 8 bits first.

The noise n of picture number i (from 0, in order of the names, whatever --limit says) is
numpy.random.Generator(numpy.random.PCG64([seed, i])).standard_normal((H, W, C)), equal for all conditions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.errors import RestortError, UsageError
from restort.evaluation.blur_kernels import Centre, blur, read_kernels
from restort.evaluation.degradations import Jpeg, Noise, PoissonGaussNoise, WhiteNoise, to_8_bit
from restort.evaluation.resize import imresize
from restort.imaging.formats import READ_LIST

Array: TypeAlias = NDArray[Any]
Uint8: TypeAlias = NDArray[np.uint8]
Make: TypeAlias = Callable[[int, Uint8], tuple[Array, Uint8]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
TASKS = ("upscale", "denoise", "deblur", "derain", "defocus")
UNDAMAGED = "undamaged"  # the condition of pictures without noise
SIGMAS = (15.0, 25.0, 50.0)  # default standard deviations of the noise, of 255


@dataclass(frozen=True)
class Case:
    """One picture under one condition; `load()` gives (degraded, clean), both (H, W, C) in [0, 255].

    `clean` is uint8. `degraded` is uint8 where it comes from (or would be stored in) a file, float64, unclipped,
    where noise was added.
    """

    name: str
    condition: str
    load: Callable[[], tuple[Array, Uint8]]


@dataclass(frozen=True)
class Dataset:
    """`cases` in the order condition by condition; `made` says in words how the inputs were made."""

    folder: Path
    task: str
    made: str
    scale: int
    cases: Sequence[Case]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def conditions(self) -> list[str]:
        """The conditions of the cases, in order."""
        return list(dict.fromkeys(case.condition for case in self.cases))


def check_folder(folder: Path) -> None:
    """Raise RestortError where the folder of a test set does not exist."""
    if not folder.is_dir():
        raise RestortError(f"there is no folder {folder}; give the folder of a test set")


def open_dataset(
    folder: Path,
    task: str,
    *,
    scale: int = 1,
    channels: int = 3,
    sigmas: Sequence[float] | None = None,
    poisson_gauss: Sequence[PoissonGaussNoise] = (),
    eight_bit: bool = False,
    jpeg: Sequence[Jpeg] = (),
    kernels: Path | None = None,
    centre: Centre = "centroid",
    noise: float = 2.55,
    seed: int = 0,
    limit: int | None = None,
    crop: int | None = None,
) -> Dataset:
    """Open the test set in `folder` for `task`; read only names and blur kernels.

    scale      of the network, for upscale.
    channels   1 converts colour pictures to gray (BT.601, 8 bit) first; 3 repeats gray pictures.
    sigmas     of the noise for denoise, on the scale of [0, 255]: one condition each. None: SIGMAS, or no noise where
               `poisson_gauss` or `jpeg` is given.
    poisson_gauss   noise for denoise whose variance grows with the brightness: one condition each.
    eight_bit  noisy inputs are clipped and rounded to 8 bits, as a file would hold them.
    jpeg       every input is compressed: each condition once for each of these settings.
    kernels    a file of blur kernels for deblur (see read_kernels): one condition each; `centre` likewise.
    noise      sigma of the noise on blurred pictures.
    limit      only the first so many pictures.  crop: only the middle of each, so many pixels of the input wide
               and high at most (before the blur takes its border).

    Raises UsageError for options that do not fit, RestortError where the folder holds no such test set.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task}; the tasks are {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of pictures must be at least 1, not {limit}")
    if crop is not None and crop < 16:
        raise UsageError(f"the crop must be at least 16 pixels, not {crop}")
    if poisson_gauss and task != "denoise":
        raise UsageError(f"--poisson-gauss is noise to remove by denoise, not by {task}")
    check_folder(folder)
    seen = _Sources(folder, channels, limit, crop)
    if task == "upscale":
        data = _upscale(seen, scale)
    elif pairs := _pairs(folder):
        load = {name: seen.pair(noisy, clean) for name, noisy, clean in pairs[:limit]}
        cases = [Case(name, "pairs", function) for name, function in load.items()]
        data = Dataset(folder, task, "pairs of files as they are", 1, cases)
    elif task == "denoise":
        levels = () if sigmas is None and (poisson_gauss or jpeg) else SIGMAS if sigmas is None else sigmas
        data = _denoise(seen, [*map(WhiteNoise, levels), *poisson_gauss], levels, seed, eight_bit)
    elif task == "deblur":
        data = _deblur(seen, kernels, centre, noise, seed, eight_bit)
    else:
        raise RestortError(
            f"{folder} holds no pairs, which {task} is measured on; it needs input/ and target/"
        )
    return _compressed(data, jpeg) if jpeg else data


def _compressed(data: Dataset, jpeg: Sequence[Jpeg]) -> Dataset:
    """Return `data` with every input compressed: all cases once for each setting of `jpeg`."""

    def loader(case: Case, setting: Jpeg) -> Callable[[], tuple[Array, Uint8]]:
        def load() -> tuple[Array, Uint8]:
            degraded, clean = case.load()
            return setting.apply(degraded), clean

        return load

    cases = [
        Case(case.name, f"{case.condition}, {setting}".removeprefix(f"{UNDAMAGED}, "), loader(case, setting))
        for setting in jpeg
        for case in data.cases
    ]
    made = f"{data.made}; then rounded to 8 bit and compressed as JPEG by Pillow"
    settings = {**data.settings, "jpeg": [str(setting).removeprefix("jpeg ") for setting in jpeg]}
    return replace(data, cases=cases, made=made, settings=settings)


@dataclass(frozen=True)
class _Sources:
    folder: Path
    channels: int
    limit: int | None
    crop: int | None

    def clean(self) -> list[Path]:
        """Return the files of the clean pictures, at most `limit`."""
        high = self.folder / "HR"
        return pictures(high if high.is_dir() else self.folder)[: self.limit]

    def read(self, path: Path) -> Uint8:
        """Read a picture as uint8 (H, W, channels)."""
        return read_8_bit(path, self.channels)

    def middle(self, image: Uint8, factor: int = 1) -> Uint8:
        """Crop a picture, `factor` times as large as the input, to the middle `crop` pixels of the input."""
        if self.crop is None:
            return image
        sides = [min(n // factor, self.crop) for n in image.shape[:2]]
        top, left = (
            (n // factor - side) // 2 * factor for n, side in zip(image.shape[:2], sides, strict=True)
        )
        return image[top : top + sides[0] * factor, left : left + sides[1] * factor]

    def pair(self, degraded: Path, clean: Path) -> Callable[[], tuple[Array, Uint8]]:
        """Return a loader of a (degraded, clean) pair of files; it raises RestortError where their sizes differ."""

        def load() -> tuple[Array, Uint8]:
            a, b = self.read(degraded), self.read(clean)
            if a.shape != b.shape:
                raise RestortError(f"{degraded} and {clean} differ in size: they are no pair")
            return self.middle(a), self.middle(b)

        return load

    def cases(self, condition: str, make: Make) -> list[Case]:
        """Return a case of every clean picture, where `make(index, clean)` gives (degraded, reference)."""

        def loader(index: int, path: Path) -> Callable[[], tuple[Array, Uint8]]:
            return lambda: make(index, self.middle(self.read(path)))

        return [Case(path.stem, condition, loader(i, path)) for i, path in enumerate(self.clean())]


def pictures(folder: Path) -> list[Path]:
    """Return the pictures directly in `folder`, sorted by name with numbers by value."""

    def order(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", path.name.lower())
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]

    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise RestortError(f"there are no pictures in {folder}; formats read here: {READ_LIST}")
    return sorted(found, key=order)


def read_8_bit(path: Path, channels: int) -> Uint8:
    """Read a picture file as uint8 (H, W, channels): without alpha, 16 bit rounded, gray repeated or made as needed."""
    from restort.imaging.decode import read
    from restort.imaging.encode import to_8_bit

    pixels = read(path).pixels
    if pixels.dtype != np.uint8:
        pixels = to_8_bit(pixels)
    if pixels.shape[2] == channels:
        return np.asarray(pixels, dtype=np.uint8)
    if channels == 1:
        luma = np.floor(pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) + 0.5)
        return np.asarray(luma[:, :, None], dtype=np.uint8)
    return np.asarray(np.repeat(pixels, channels, axis=2), dtype=np.uint8)


def _noise(index: int, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64([seed, index])).standard_normal(shape)


def _upscale(seen: _Sources, scale: int) -> Dataset:
    if scale < 2:
        raise UsageError("upscale is measured with a model that enlarges; this one does not")
    folder = seen.folder / "LR_bicubic" / f"X{scale}"
    if not folder.is_dir():

        def loader(path: Path) -> Callable[[], tuple[Array, Uint8]]:
            def load() -> tuple[Array, Uint8]:
                image = seen.middle(_whole(seen.read(path), path, scale), scale)
                return imresize(image, 1 / scale), image

            return load

        cases = [Case(path.stem, f"x{scale}", loader(path)) for path in seen.clean()]
        return Dataset(seen.folder, "upscale", f"bicubic 1/{scale} as MATLAB imresize, 8 bit", scale, cases)

    def published(high: Path) -> Callable[[], tuple[Array, Uint8]]:
        low = _beside(folder, f"{high.stem}x{scale}", high) or folder / high.name

        def load() -> tuple[Array, Uint8]:
            if not low.is_file():
                raise RestortError(f"there is no low-resolution picture {low.name} in {folder}")
            a, b = seen.read(low), seen.read(high)
            h, w = (n * scale for n in a.shape[:2])
            if not (0 <= b.shape[0] - h < scale and 0 <= b.shape[1] - w < scale):
                raise RestortError(f"{low} is not {high} made {scale} times smaller: their sizes do not fit")
            return seen.middle(a), seen.middle(b[:h, :w], scale)

        return load

    cases = [Case(path.stem, f"x{scale}", published(path)) for path in seen.clean()]
    return Dataset(seen.folder, "upscale", f"files of LR_bicubic/X{scale}", scale, cases)


def _whole(image: Uint8, path: Path, scale: int) -> Uint8:
    h, w = (n // scale * scale for n in image.shape[:2])
    if not h or not w:
        raise RestortError(f"{path} is smaller than {scale} pixels")
    return image[:h, :w]


def _beside(folder: Path, stem: str, like: Path) -> Path | None:
    """Return the file `stem`.* in `folder`, the one with the suffix of `like` if there are several."""
    names = [like.suffix, *SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]
    return next(
        (folder / f"{stem}{suffix}" for suffix in names if (folder / f"{stem}{suffix}").is_file()), None
    )


def _pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    """Return (name, degraded, clean) of every pair in a folder; [] for a folder without pairs."""
    if (folder / "input").is_dir() and (folder / "target").is_dir():
        found = []
        for path in pictures(folder / "input"):
            clean = _beside(folder / "target", path.stem, path)
            if clean is None:
                raise RestortError(f"{path} has no counterpart in {folder / 'target'}")
            found.append((path.stem, path, clean))
        return found
    real = [path for path in sorted(folder.glob("*_real.*")) if path.suffix.lower() in SUFFIXES]
    pairs = [(path.stem[:-5], path, _beside(folder, path.stem[:-5] + "_mean", path)) for path in real]
    return [(name, path, clean) for name, path, clean in pairs if clean is not None]


def _denoise(
    seen: _Sources, noises: Sequence[Noise], sigmas: Sequence[float], seed: int, eight_bit: bool
) -> Dataset:
    def noisy(kind: Noise) -> Make:
        def make(index: int, image: Uint8) -> tuple[Array, Uint8]:
            degraded = kind.add(image, lambda shape: _noise(index, shape, seed))
            return to_8_bit(degraded) if eight_bit else degraded, image

        return make

    cases = [case for kind in noises for case in seen.cases(str(kind), noisy(kind))]
    if not noises:
        cases = seen.cases(UNDAMAGED, lambda index, image: (image, image))
    settings: dict[str, Any] = {"sigmas": list(sigmas), "seed": seed}
    variances = [str(kind) for kind in noises if isinstance(kind, PoissonGaussNoise)]
    if variances:
        settings["poisson_gauss"] = [name.removeprefix("poisson-gauss ") for name in variances]
    if eight_bit:
        settings["eight_bit"] = True
    return Dataset(
        seen.folder, "denoise", _noise_in_words(bool(variances), eight_bit, bool(noises)), 1, cases, settings
    )


def _noise_in_words(variances: bool, eight_bit: bool, any_noise: bool) -> str:
    if not any_noise:
        return "clean pictures"
    kinds = "clean + sigma * N(0, 1)"
    if variances:
        kinds += ", or clean + 255 * sqrt(a * clean / 255 + b) * N(0, 1),"
    return (
        f"{kinds} {'clipped and rounded to 8 bit' if eight_bit else 'in float, neither clipped nor rounded'}"
    )


def _deblur(
    seen: _Sources, kernels: Path | None, centre: Centre, noise: float, seed: int, eight_bit: bool
) -> Dataset:
    if kernels is None:
        raise UsageError(
            "deblur on clean pictures needs blur kernels; name a file of them with --blur-kernels"
        )
    if not 0 <= noise <= 255:
        raise UsageError(f"the noise on blurred pictures must lie between 0 and 255, not {noise:g}")
    stack = read_kernels(kernels, centre)

    def blurred(kernel: NDArray[np.float64]) -> Make:
        def make(index: int, image: Uint8) -> tuple[Array, Uint8]:
            soft = blur(image, kernel)
            margin = len(kernel) // 2
            inner = image[margin : margin + soft.shape[0], margin : margin + soft.shape[1]]
            degraded = soft + noise * _noise(index, soft.shape, seed)
            return to_8_bit(degraded) if eight_bit else degraded, inner

        return make

    cases = [case for i, kernel in enumerate(stack, 1) for case in seen.cases(f"kernel {i}", blurred(kernel))]
    made = (
        "convolved with each kernel where it lies inside the picture, + noise * N(0, 1) "
        f"{'clipped and rounded to 8 bit' if eight_bit else 'in float, neither clipped nor rounded'}"
    )
    settings = {"kernels": kernels.name, "kernel_centre": centre, "noise": noise, "seed": seed}
    if eight_bit:
        settings["eight_bit"] = True
    return Dataset(seen.folder, "deblur", made, 1, cases, settings)
