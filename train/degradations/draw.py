"""Random numbers of a batch: one value per sample, broadcast over its pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Draw:
    """Values of shape (N, 1, 1, 1) from one generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high)."""
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=self.generator, device=self.device)

    def log_uniform(self, n: int, low: float, high: float) -> Tensor:
        """The logarithm is uniform: every factor of two is as likely as the next."""
        return torch.exp(self.uniform(n, math.log(low), math.log(high)))

    def chance(self, n: int, share: float) -> Tensor:
        """True in about `share` of the samples."""
        return self.uniform(n) < share

    def where(self, n: int, share: float, value: Tensor, otherwise: float = 0.0) -> Tensor:
        """`value` in about `share` of the samples, `otherwise` in the rest."""
        return torch.where(self.chance(n, share), value, torch.full_like(value, otherwise))

    def integers(self, n: int, low: int, high: int) -> Tensor:
        """(N,) int64 in low..high, both included."""
        return torch.randint(low, high + 1, (n,), generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)


def windows(size: int, tops: Tensor, lefts: Tensor, *pictures: Tensor) -> tuple[Tensor, ...]:
    """From each sample of each of `pictures` the same `size` x `size` window at its own (top, left)."""
    n = len(tops)
    offset = torch.arange(size, device=tops.device)
    sample = torch.arange(n, device=tops.device).view(n, 1, 1, 1)
    rows = (tops.view(n, 1) + offset).view(n, 1, size, 1)
    columns = (lefts.view(n, 1) + offset).view(n, 1, 1, size)

    def cut(x: Tensor) -> Tensor:
        channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        return x[sample, channel, rows, columns]

    return tuple(cut(x) for x in pictures)


def random_windows(size: int, draw: Draw, *pictures: Tensor) -> tuple[Tensor, ...]:
    """`windows` at random places: an 8x8 grid of JPEG, for example, lands anywhere."""
    n, _, height, width = pictures[0].shape
    tops, lefts = draw.integers(n, 0, height - size), draw.integers(n, 0, width - size)
    return windows(size, tops, lefts, *pictures)
