"""Mixtures of damage: what a network for real pictures learns from.

A recipe takes `crop(count, side)`, which gives clean square crops (count, 3, side, side), and returns
(degraded, clean).
Its groups have fixed sizes, so that shapes never change from step to step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from train.degradations import camera, filters, motion, noise
from train.degradations.colour import constant, eight_bit
from train.degradations.draw import Draw, random_windows, windows
from train.degradations.jpeg import draw_sampling, jpeg

Crop = Callable[[int, int], Tensor]
GRID = 16  # pixels more than needed before a JPEG round trip: room to move its grid


def counts(n: int, shares: tuple[float, ...]) -> list[int]:
    """Whole numbers near n * share, of sum n; the shares have sum 1."""
    ends = [round(n * sum(shares[: i + 1])) for i in range(len(shares))]
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def per_sample(values: list[float], sizes: list[int], device: torch.device) -> Tensor:
    """(N, 1, 1, 1): one of `values` for each group of `sizes` samples. Kept on the device: do not write to it."""
    flat = tuple(value for value, size in zip(values, sizes, strict=True) for _ in range(size))
    return constant(flat, device).view(-1, 1, 1, 1)


def _coded(
    x: Tensor, share: Tensor, low: Tensor, high: Tensor, draw: Draw, bend: Tensor | float = 1.0
) -> Tensor:
    """JPEG in `share` of the samples, quality low..high; `bend` above 1 makes low qualities likelier."""
    n = len(x)
    quality = low + (high - low) * draw.uniform(n) ** bend
    return torch.where(draw.uniform(n) < share, jpeg(x, quality, draw_sampling(n, draw)), x)


#                 share  1st JPEG: share, quality   2nd JPEG: share
PHOTO_GROUPS = {
    "camera":      (0.15, (0.85, 60, 98), 0.15),
    "resized":     (0.10, (0.85, 50, 98), 0.15),
    "processed":   (0.13, (0.75, 50, 98), 0.15),
    "camera_jpeg": (0.13, (0.80, 75, 99), 0.05),
    "white":       (0.25, (0.45, 70, 98), 0.05),
    "grain":       (0.03, (0.70, 40, 98), 0.10),
    "jpeg":        (0.15, (1.00, 8, 96), 0.30),
    "clean":       (0.06, (0.00, 90, 98), 0.00),
}  # fmt: skip


@torch.no_grad()
def photo(crop: Crop, patch: int, n: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """For `denoise` and `dejpeg`: camera, white and processed noise, grain, JPEG once and twice, no damage."""
    padded = patch + 2 * GRID
    sizes = counts(n, tuple(g[0] for g in PHOTO_GROUPS.values()))
    parts: list[tuple[Tensor, Tensor]] = []
    for name, k in zip(PHOTO_GROUPS, sizes, strict=True):
        if k == 0:
            continue
        if name == "camera":
            y, x = camera.camera(crop(k, padded), draw)
        elif (
            name == "resized"
        ):  # half reduced, as most pictures are that people share, half enlarged a little
            y, x = _resized_camera(crop, padded, k, draw)
        elif name == "processed":
            x = crop(k, padded)
            y = noise.processed(x, draw)
        elif name == "camera_jpeg":
            x = crop(k, padded)
            y = noise.camera_jpeg(x, draw)
        elif name == "grain":
            y, x = noise.grain(crop(k, padded), draw)
        else:
            x = y = crop(k, padded)
        if name == "white":
            y, x = noise.white(x, 0, 55, draw)
        else:
            y = eight_bit(y)
        parts.append((y, x))
    y, x = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    first = [per_sample([float(g[1][i]) for g in PHOTO_GROUPS.values()], sizes, y.device) for i in range(3)]
    bend = per_sample([1.5 if name == "jpeg" else 1.0 for name in PHOTO_GROUPS], sizes, y.device)
    y = _coded(y, first[0], first[1], first[2], draw, bend)
    y, x = random_windows(patch + GRID, draw, y, x)
    again = per_sample([g[2] for g in PHOTO_GROUPS.values()], sizes, y.device)
    y = _coded(y, again, torch.full_like(again, 30), torch.full_like(again, 95), draw)
    y, x = random_windows(patch, draw, y, x)
    return y, x


def _resized_camera(crop: Crop, padded: int, k: int, draw: Draw) -> tuple[Tensor, Tensor]:
    pairs = []
    for factor, part in zip((1.6, 1.25, 0.7), counts(k, (0.4, 0.3, 0.3)), strict=True):
        if part:
            side = int(padded * factor / 2) * 2
            pair = camera.camera(crop(part, side), draw)
            pairs.append(tuple(filters.resize(p, padded, "bicubic") for p in pair))
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]).clamp(0, 1)


@torch.no_grad()
def low_resolution(crop: Crop, patch: int, n: int, draw: Draw, scale: int) -> tuple[Tensor, Tensor]:
    """For blind upscaling: (degraded, `scale` times smaller, of side `patch`; clean, of side patch * scale).

    A sixth is clean bicubic, as test sets are; two fifths are that, saved as JPEG; the rest is blurred, made smaller
    in one of three ways, sharpened, noisy, in shuffled order, saved as JPEG, and a third of that
    softened and saved again.
    """
    small, large = patch + 2 * GRID, (patch + 2 * GRID) * scale
    clean, saved, *blind = counts(n, (0.16, 0.40, 0.15, 0.15, 0.14))
    targets = [crop(clean + saved, large)]
    lows = [filters.bicubic_downscale(targets[0], scale, peak=1.0)]
    reach = 2 * round(1.5 * scale) + 1
    margin = reach // 2
    for mode, k in zip(filters.MODES, blind, strict=True):
        if k == 0:
            continue
        whole = crop(k, large + 2 * margin)
        kernels = filters.gaussian_kernels(k, reach, 0.2, 0.5 * scale, draw)
        low = filters.resize(motion.blur(whole, kernels), small, mode)
        targets.append(whole[..., margin:-margin, margin:-margin])
        lows.append(_worn(low, draw))
    x, y = torch.cat(targets), eight_bit(torch.cat(lows))
    sizes = [clean, saved, sum(blind)]
    device = y.device
    first = [per_sample(v, sizes, device) for v in ([0.0, 1.0, 0.85], [40.0, 40.0, 40.0], [95.0, 95.0, 95.0])]
    y = _coded(y, *first, draw)
    y, x = _scaled_windows(patch + GRID, draw, y, x, scale)
    again = per_sample([0.0, 0.0, 0.3], sizes, device)
    softer = filters.gaussian_blur(y, draw.uniform(n, 0.2, 0.7))
    chosen = draw.uniform(n) < again
    y = torch.where(chosen, jpeg(softer, draw.uniform(n, 45, 95), draw_sampling(n, draw)), y)
    return _scaled_windows(patch, draw, y, x, scale)


def _worn(low: Tensor, draw: Draw) -> Tensor:
    """Sharpening halos in a third, before or after noise in a half."""
    n = len(low)
    amount = draw.where(n, 0.33, draw.uniform(n, 0.3, 1.2))
    sigma = draw.uniform(n, 0.6, 1.5)
    before = draw.chance(n, 0.5)
    low = torch.where(before, filters.unsharp(low, amount, sigma), low)
    rough = torch.where(
        draw.chance(n, 0.5),
        noise.processed(low, draw, 0.7, 10.0),
        low + draw.uniform(n, 0, 10) / 255 * draw.normal(*low.shape),
    )
    low = torch.where(draw.chance(n, 0.55), rough, low)
    return torch.where(before, low, filters.unsharp(low, amount, sigma))


def _scaled_windows(size: int, draw: Draw, y: Tensor, x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    n, room = len(y), y.shape[-1] - size
    tops, lefts = draw.integers(n, 0, room), draw.integers(n, 0, room)
    return windows(size, tops, lefts, y)[0], windows(size * scale, tops * scale, lefts * scale, x)[0]


@torch.no_grad()
def shaken(crop: Crop, patch: int, n: int, draw: Draw, size: int, spread: float) -> tuple[Tensor, Tensor]:
    """For deblurring: camera shake, also varying over the picture, a lens out of focus, sharp pictures; then JPEG.

    `size` and `spread` are those of `motion.motion_kernels`.
    """
    margin, padded = size // 2, patch + GRID
    shake, varying, focus, sharp = sizes = counts(n, (0.66, 0.06, 0.14, 0.14))
    whole = crop(n, padded + 2 * margin)
    x = whole[..., margin:-margin, margin:-margin]
    g, device = draw.generator, draw.device
    kernels = motion.motion_kernels(shake + 2 * varying, size, g, device, spread=spread)
    lens = filters.disc_kernels(focus, size, 0.8, 4.0, draw)
    parts = [
        motion.blur(whole[: shake], kernels[: shake]),
        motion.blur_varying(
            whole[shake : shake + varying], *kernels[shake:].split(varying), draw.uniform(varying, 0, 6.2832)
        ) if varying else x[:0],
        motion.blur(whole[shake + varying : n - sharp], lens) if focus else x[:0],
        x[n - sharp :],
    ]  # fmt: skip
    y = torch.cat(parts)
    noisy = y + draw.where(n, 0.8, draw.uniform(n, 0, 5.0)) / 255 * draw.normal(*y.shape)
    harmed = per_sample([1.0, 1.0, 1.0, 0.4], sizes, device)  # of the sharp ones most are left as they are
    y = torch.where(draw.uniform(n) < harmed, noisy, y)
    y = torch.where(draw.chance(n, 0.7), eight_bit(y), y)
    shares = [per_sample(v, sizes, device) for v in ([0.25, 0.25, 0.3, 0.5], [60.0] * 4, [98.0] * 4)]
    y = _coded(y, *shares, draw)
    y, x = random_windows(patch, draw, y, x)
    return y, x
