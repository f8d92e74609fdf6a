"""A try reads a damaged picture, looks at its damage, and writes what was read in some format."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np

from restort.errors import RestortError
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference.damage import damage_of
from tests.attack import children
from tests.attack.mutations import mutated, pictures

SEEDS = pictures()
PEAK_BYTES = 1 << 30
SUFFIXES = (".png", ".jpg", ".tif", ".webp", ".bmp", ".avif")


def attempt(seed: int, number: int, folder: Path) -> str | None:
    random = np.random.default_rng((seed, number))
    path = folder / "a.png"  # the content decides, not the name
    path.write_bytes(mutated(random, SEEDS))
    before = _peak()
    wrong = _tried(path, folder / f"o{SUFFIXES[random.integers(len(SUFFIXES))]}")
    taken = _peak() - before
    return f"{taken >> 20} MiB" if wrong is None and taken > PEAK_BYTES else wrong


def _tried(path: Path, target: Path) -> str | None:
    try:
        damage_of(path)
    except RestortError as error:
        if (wrong := _unclear(error, path)) is not None:
            return wrong
    except Exception as error:
        return f"damage_of: {error!r}"
    try:
        picture = read(path, max_pixels=4_000_000)
    except RestortError as error:
        return _unclear(error, path)
    except Exception as error:
        return f"read: {error!r}"
    if not isinstance(picture, Picture) or picture.pixels.shape[2] not in (1, 3):
        return f"read gave {type(picture).__name__} {picture.pixels.shape}"
    try:
        write(target, picture, overwrite=True)
        again = read(target)
    except RestortError as error:
        # sizes that the format cannot hold are refused in a sentence, too
        return None if "holds at most" in str(error) else f"write to {target.suffix}: {error}"
    except Exception as error:
        return f"write to {target.suffix}: {error!r}"
    if again.pixels.shape[:2] != picture.pixels.shape[:2]:
        return f"{picture.pixels.shape} came back from {target.suffix} as {again.pixels.shape}"
    return None


def _unclear(error: RestortError, path: Path) -> str | None:
    text = str(error)
    return None if "\n" not in text and str(path) in text else f"not a sentence about the file: {text!r}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    children.main(attempt)
