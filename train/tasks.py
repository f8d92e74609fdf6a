"""What a step learns from: batches of (degraded, clean), made on the training device from the step's own seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train import degrade
from train.config import Config
from train.data import Bank, load_all, photographs

VALIDATION_SIDE = 576  # a multiple of 16 after division by 1, 2, 3 and 4


@dataclass
class Task:
    """`batch(step)` gives training pairs; `validation` is a fixed list of pairs of held-out photographs."""

    batch: Callable[[int], tuple[Tensor, Tensor]]
    validation: list[tuple[Tensor, Tensor]]


def _generator(config: Config, step: int, device: torch.device) -> torch.Generator:
    """Random numbers that depend on the seed and the step alone, so that a continued run draws what it would have."""
    generator = torch.Generator(device)
    generator.manual_seed(config.seed * 1_000_003 + step)
    return generator


def _held_out(paths: list[Path], device: torch.device) -> list[Tensor]:
    """The middle of each held-out photograph, (1, 3, side, side) in [0, 1], side at most VALIDATION_SIDE."""
    crops = []
    for image in load_all(paths):
        side = min(VALIDATION_SIDE, *(n // 48 * 48 for n in image.shape[:2]))
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        crop = torch.as_tensor(image[top : top + side, left : left + side].copy()).to(device)
        crops.append(crop.permute(2, 0, 1)[None].float() / 255)
    return crops


def make_task(config: Config, folder: Path, device: torch.device, limit: int | None = None) -> Task:
    """The task of `config` over the photographs in `folder` (`limit`: only the first so many of them)."""
    training, held = photographs(folder, config.exclude)
    images = load_all(training[:limit])
    clean = _held_out(held[:limit], device)
    makers = {"upscale": _upscale, "denoise": _denoise, "deblur": _deblur}
    return makers[config.task](config, images, clean, device)


def _quantise(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255) / 255


def _upscale(config: Config, images: list, clean: list[Tensor], device: torch.device) -> Task:  # type: ignore[type-arg]
    scale = config.spec.scale
    high, low = [], []
    for image in images:
        h, w = (n // scale * scale for n in image.shape[:2])
        whole = torch.as_tensor(image[:h, :w].copy()).to(device)
        small = degrade.bicubic_downscale(whole.permute(2, 0, 1)[None].double(), scale)
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
        (_quantise((degrade.bicubic_downscale(x.double() * 255, scale) / 255).float()), x) for x in clean
    ]
    return Task(batch, pairs)


def _denoise(config: Config, images: list, clean: list[Tensor], device: torch.device) -> Task:  # type: ignore[type-arg]
    bank = Bank(images, device)

    def add_noise(x: Tensor, sigma: Tensor, g: torch.Generator) -> Tensor:
        return degrade.gaussian_noise(x, sigma / 255, generator=g)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = _generator(config, step, device)
        patch, n = config.stage(step)
        image = bank.draw(n, g)
        target = bank.crop(
            image, *bank.positions(image, patch, g), patch, torch.randint(8, (n,), generator=g, device=device)
        )
        low, high = config.sigma
        return add_noise(target, low + (high - low) * torch.rand(n, generator=g, device=device), g), target

    g = _generator(config, -1, device)
    levels = [15.0, 25.0, 50.0]
    pairs = [(add_noise(x, torch.tensor([levels[i % 3]], device=device), g), x) for i, x in enumerate(clean)]
    return Task(batch, pairs)


def _deblur(config: Config, images: list, clean: list[Tensor], device: torch.device) -> Task:  # type: ignore[type-arg]
    bank = Bank(images, device)
    size = config.kernel_size
    margin = size // 2

    def blurred(x: Tensor, sigma: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        kernels = degrade.motion_kernels(
            len(x), size, generator=g, device=device, spread=config.kernel_spread
        )
        sharp = x[..., margin:-margin, margin:-margin]
        return degrade.gaussian_noise(degrade.blur(x, kernels), sigma / 255, generator=g), sharp

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = _generator(config, step, device)
        patch, n = config.stage(step)
        wide = patch + 2 * margin
        image = bank.draw(n, g)
        crop = bank.crop(
            image, *bank.positions(image, wide, g), wide, torch.randint(8, (n,), generator=g, device=device)
        )
        low, high = config.sigma
        return blurred(crop, low + (high - low) * torch.rand(n, generator=g, device=device), g)

    g = _generator(config, -1, device)
    pairs = []
    for x in clean:
        degraded, sharp = blurred(x, torch.tensor([2.55], device=device), g)
        side = degraded.shape[-1] // 8 * 8
        pairs.append((degraded[..., :side, :side], sharp[..., :side, :side]))
    return Task(batch, pairs)
