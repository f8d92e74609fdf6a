"""What a step learns from: batches of (degraded, clean), made on the training device from the step's own seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.config import Config
from train.data import Bank, load_all, photographs
from train.degradations import camera, filters, motion, noise, recipes
from train.degradations.colour import eight_bit
from train.degradations.draw import Draw
from train.degradations.jpeg import S420, jpeg
from train.drawings import drawing

VALIDATION_SIDE = 576  # a multiple of 16 after division by 1, 2, 3 and 4
PHOTO_VALIDATION_SIDE = 384

Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class Task:
    """`batch(step)` gives training pairs; `validation` holds named sets of fixed pairs of held-out photographs.

    `make(generator, patch, n)`, where there is one, is what `batch` calls: it never waits for the device and its shapes
    follow from patch and n alone, so that a CUDA graph can hold it.
    """

    batch: Callable[[int], tuple[Tensor, Tensor]]
    validation: dict[str, Pairs] = field(default_factory=dict)
    make: Callable[[torch.Generator, int, int], tuple[Tensor, Tensor]] | None = None


def seed_of(config: Config, step: int) -> int:
    """The seed of a step's random numbers: a continued run draws what it would have drawn."""
    return config.seed * 1_000_003 + step


def _generator(config: Config, step: int, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    generator.manual_seed(seed_of(config, step))
    return generator


def _held_out(paths: list[Path], device: torch.device, largest: int, reduce: float = 1.0) -> list[Tensor]:
    """The middle of each held-out photograph, (1, 3, side, side) in [0, 1], side at most `largest`."""
    crops = []
    for image in load_all(paths, reduce):
        side = min(largest, *(n // 48 * 48 for n in image.shape[:2]))
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        crop = torch.as_tensor(image[top : top + side, left : left + side].copy()).to(device)
        crops.append(crop.permute(2, 0, 1)[None].float() / 255)
    return crops


def make_task(config: Config, folder: Path, device: torch.device, limit: int | None = None) -> Task:
    """The task of `config` over the photographs in `folder` (`limit`: only the first so many of them)."""
    training, held = photographs(folder, config.exclude)
    training, held = training[:limit], held[:limit]
    if config.recipe == "photo":
        return _photo(config, training, held, device)
    images = load_all(training)
    clean = _held_out(held, device, VALIDATION_SIDE)
    makers = {"upscale": _upscale, "denoise": _denoise, "deblur": _deblur}
    return makers[config.task](config, images, clean, device)


def _cropper(bank: Bank, generator: torch.Generator) -> recipes.Crop:
    """Random crops of `bank`, turned and mirrored at random."""

    def crop(count: int, side: int) -> Tensor:
        image = bank.draw(count, generator)
        top, left = bank.positions(image, side, generator)
        turn = torch.randint(8, (count,), generator=generator, device=generator.device)
        return bank.crop(image, top, left, side, turn)

    return crop


def _largest_crop(config: Config) -> int:
    """Side of the largest clean crop that the recipe of `config` asks for in any stage."""
    patch = max(stage[1] for stage in config.stages())
    if config.task == "upscale":
        scale = config.spec.scale
        return (patch + 2 * recipes.GRID) * scale + 4 * scale
    if config.task == "deblur":
        return patch + recipes.GRID + config.kernel_size
    return int((patch + 2 * recipes.GRID) * 1.6) + 2


def _photo(config: Config, training: list[Path], held: list[Path], device: torch.device) -> Task:
    least = _largest_crop(config)
    images: list[np.ndarray] = [i for factor in config.reduce for i in load_all(training, factor)]
    images = [i for i in images if min(i.shape[:2]) >= least]
    images += [drawing(seed, max(704, least)) for seed in range(config.drawings)]
    if not images:
        raise ValueError(f"no photograph is as large as the crops of {config.name}, {least} pixels")
    bank = Bank(images, device)
    scale = config.spec.scale
    makers = {
        "denoise": lambda crop, patch, n, draw: recipes.photo(crop, patch, n, draw),
        "upscale": lambda crop, patch, n, draw: recipes.low_resolution(crop, patch, n, draw, scale),
        "deblur": lambda crop, patch, n, draw: recipes.shaken(
            crop, patch, n, draw, config.kernel_size, config.kernel_spread
        ),
    }
    recipe = makers[config.task]

    def make(generator: torch.Generator, patch: int, n: int) -> tuple[Tensor, Tensor]:
        return recipe(_cropper(bank, generator), patch, n, Draw(generator))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return make(_generator(config, step, device), *config.stage(step))

    clean = _held_out(held, device, PHOTO_VALIDATION_SIDE, min(0.8, *config.reduce, 1.0))
    return Task(batch, _photo_sets(config, clean, Draw(_generator(config, -1, device))), make)


def _photo_sets(config: Config, clean: list[Tensor], draw: Draw) -> dict[str, Pairs]:
    """One set for each kind of damage that the model is for, and undamaged pictures, which it should leave alone."""

    def saved(x: Tensor, quality: float) -> Tensor:
        n = len(x)
        return jpeg(x, torch.full((n,), quality, device=x.device), torch.full((n,), S420, device=x.device))

    def white(x: Tensor, sigma: float) -> Tensor:
        return eight_bit(x + sigma / 255 * draw.normal(*x.shape))

    kinds: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]
    if config.task == "denoise":
        kinds = {
            "camera": lambda x: _saved_pair(camera.camera(x, draw), saved, 92),
            "processed": lambda x: (saved(noise.processed(x, draw), 90), x),
            "white15_jpeg95": lambda x: (saved(white(x, 15), 95), x),
            "white25": lambda x: (white(x, 25), x),
            "white50": lambda x: (white(x, 50), x),
            "jpeg20": lambda x: (saved(x, 20), x),
            "jpeg40": lambda x: (saved(x, 40), x),
            "clean": lambda x: (x, x),
        }
    elif config.task == "upscale":
        scale = config.spec.scale

        def low(x: Tensor) -> Tensor:
            return filters.bicubic_downscale(x, scale, peak=1.0)

        kinds = {
            "clean": lambda x: (low(x), x),
            "jpeg75": lambda x: (saved(low(x), 75), x),
            "noise5_jpeg90": lambda x: (saved(white(low(x), 5), 90), x),
        }
    else:
        margin = config.kernel_size // 2

        def blurred(x: Tensor, kernels: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            y, x = white(motion.blur(x, kernels), sigma), x[..., margin:-margin, margin:-margin]
            side = y.shape[-1] // 16 * 16
            return y[..., :side, :side], x[..., :side, :side]

        def shake(n: int) -> Tensor:
            return motion.motion_kernels(
                n, config.kernel_size, draw.generator, draw.device, spread=config.kernel_spread
            )

        kinds = {
            "shake": lambda x: blurred(x, shake(len(x)), 2.55),
            "disc": lambda x: blurred(
                x, filters.disc_kernels(len(x), config.kernel_size, 2.5, 2.5, draw), 1.0
            ),
            "jpeg75": lambda x: (saved(x, 75), x),
            "clean": lambda x: (x, x),
        }
    return {name: [kind(x) for x in clean] for name, kind in kinds.items()}


def _saved_pair(
    pair: tuple[Tensor, Tensor], saved: Callable[[Tensor, float], Tensor], quality: float
) -> tuple[Tensor, Tensor]:
    return saved(pair[0], quality), pair[1]


def _upscale(config: Config, images: list, clean: list[Tensor], device: torch.device) -> Task:  # type: ignore[type-arg]
    scale = config.spec.scale
    high, low = [], []
    for image in images:
        h, w = (n // scale * scale for n in image.shape[:2])
        whole = torch.as_tensor(image[:h, :w].copy()).to(device)
        small = filters.bicubic_downscale(whole.permute(2, 0, 1)[None].double(), scale)
        high.append(whole)
        low.append(small[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous())
    high_bank, low_bank = Bank(high, device), Bank(low, device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = _generator(config, step, device)
        patch, n = config.stage(step)
        image = low_bank.draw(n, g)
        top, left = low_bank.positions(image, patch, g)
        turn = torch.randint(8, (n,), generator=g, device=device)
        target = high_bank.crop(image, top * scale, left * scale, patch * scale, turn)
        return low_bank.crop(image, top, left, patch, turn), target

    pairs = [
        (eight_bit((filters.bicubic_downscale(x.double() * 255, scale) / 255).float()), x) for x in clean
    ]
    return Task(batch, {"clean": pairs})


def _denoise(config: Config, images: list, clean: list[Tensor], device: torch.device) -> Task:  # type: ignore[type-arg]
    bank = Bank(images, device)

    def add_noise(x: Tensor, sigma: Tensor, g: torch.Generator) -> Tensor:
        return noise.gaussian_noise(x, sigma / 255, generator=g)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = _generator(config, step, device)
        patch, n = config.stage(step)
        target = _cropper(bank, g)(n, patch)
        low, high = config.sigma
        return add_noise(target, low + (high - low) * torch.rand(n, generator=g, device=device), g), target

    g = _generator(config, -1, device)
    levels = [15.0, 25.0, 50.0]
    pairs = [(add_noise(x, torch.tensor([levels[i % 3]], device=device), g), x) for i, x in enumerate(clean)]
    return Task(batch, {"white": pairs})


def _deblur(config: Config, images: list, clean: list[Tensor], device: torch.device) -> Task:  # type: ignore[type-arg]
    bank = Bank(images, device)
    size = config.kernel_size
    margin = size // 2

    def blurred(x: Tensor, sigma: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        kernels = motion.motion_kernels(len(x), size, generator=g, device=device, spread=config.kernel_spread)
        sharp = x[..., margin:-margin, margin:-margin]
        return noise.gaussian_noise(motion.blur(x, kernels), sigma / 255, generator=g), sharp

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = _generator(config, step, device)
        patch, n = config.stage(step)
        crop = _cropper(bank, g)(n, patch + 2 * margin)
        low, high = config.sigma
        return blurred(crop, low + (high - low) * torch.rand(n, generator=g, device=device), g)

    g = _generator(config, -1, device)
    pairs = []
    for x in clean:
        degraded, sharp = blurred(x, torch.tensor([2.55], device=device), g)
        side = degraded.shape[-1] // 8 * 8
        pairs.append((degraded[..., :side, :side], sharp[..., :side, :side]))
    return Task(batch, {"shake": pairs})
