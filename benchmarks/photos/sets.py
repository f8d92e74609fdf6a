"""SETS: the sets of every task, made from test pictures and kept as files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from photos.degradations import (
    Made,
    blurred,
    camera,
    coarse_noise,
    disc,
    double_jpeg,
    drawing,
    noisy,
    text,
    web_picture,
)
from photos.files import Array, jpeg_bytes, middle, png_bytes, read, read_gray, write_once
from restort.evaluation.blur_kernels import read_kernels
from restort.evaluation.resize import imresize

INPUTS = 1  # version of the made inputs: raise it when a set is made in another way


@dataclass(frozen=True)
class Sample:
    """An input file and its truth, a PNG `scale` times as large; `truth` is None for pictures only looked at."""

    name: str
    source: Path
    truth: Path | None


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
