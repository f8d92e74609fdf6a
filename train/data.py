"""All photographs in one buffer on the training device, and random crops of them by index arithmetic."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

VALIDATION = 8  # photographs held out, evenly spread over the sorted names


def decode(path: Path) -> np.ndarray:
    """One photograph as (H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def photographs(folder: Path, exclude: Collection[str] = ()) -> tuple[list[Path], list[Path]]:
    """(training, validation) files: the same split on every machine, by name."""
    suffixes = {".jpg", ".jpeg", ".png"}
    names = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name not in exclude)
    if not names:
        raise FileNotFoundError(f"{folder} holds no JPEG or PNG photographs")
    stride = max(2, len(names) // VALIDATION)
    held = names[stride // 2 :: stride][:VALIDATION]
    return [p for p in names if p not in held], held


def load_all(paths: list[Path], reduce: float = 1.0) -> list[np.ndarray]:
    """The photographs as (H, W, 3) uint8, made smaller by `reduce` (Lanczos) so that their own JPEG does not show."""

    def load(path: Path) -> np.ndarray:
        picture = decode(path)
        if reduce == 1.0:
            return picture
        height, width = (max(1, round(n * reduce)) for n in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(load, paths))


class Bank:
    """Images of different sizes in one (pixels, 3) uint8 tensor; crops are gathered on the device."""

    def __init__(self, images: list[np.ndarray] | list[Tensor], device: torch.device) -> None:
        tensors = [torch.as_tensor(np.array(i) if isinstance(i, np.ndarray) else i) for i in images]
        self.sizes = torch.tensor([t.shape[:2] for t in tensors], device=device)
        self.smallest = min(min(t.shape[:2]) for t in tensors)  # crops must fit into every picture
        starts = np.concatenate([[0], np.cumsum([t.shape[0] * t.shape[1] for t in tensors])[:-1]])
        self.starts = torch.tensor(starts, device=device)
        self.pixels = torch.cat([t.reshape(-1, 3).to(device) for t in tensors])
        # a photograph is drawn as often as its area says
        area = (self.sizes[:, 0] * self.sizes[:, 1]).double()
        self.cumulative = torch.cumsum(area / area.sum(), 0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n image numbers."""
        u = torch.rand(n, generator=generator, device=self.pixels.device, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, u).clamp(max=len(self.starts) - 1)

    def crop(self, image: Tensor, top: Tensor, left: Tensor, size: int, turn: Tensor) -> Tensor:
        """(n, 3, size, size) float32 in [0, 1]; `turn` in 0..7 is the symmetry of the square applied to each."""
        i = torch.arange(size, device=self.pixels.device)
        rows, columns = i.view(1, size, 1), i.view(1, 1, size)
        t = turn.view(-1, 1, 1)
        rows, columns = torch.where(t >= 4, columns, rows), torch.where(t >= 4, rows, columns)
        rows = torch.where(t % 2 == 1, size - 1 - rows, rows)
        columns = torch.where(t % 4 >= 2, size - 1 - columns, columns)
        width = self.sizes[image, 1].view(-1, 1, 1)
        index = (
            self.starts[image].view(-1, 1, 1)
            + (top.view(-1, 1, 1) + rows) * width
            + left.view(-1, 1, 1)
            + columns
        )
        return self.pixels[index].permute(0, 3, 1, 2).contiguous().float() / 255

    def positions(
        self, image: Tensor, size: int, generator: torch.Generator, step: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Random (top, left), multiples of `step`, of crops that lie inside.

        Every picture must be as large as the crop.
        """
        if size > self.smallest:
            raise ValueError(
                f"crops of {size} pixels do not fit into a picture whose shorter side is {self.smallest}"
            )
        u = torch.rand(2, len(image), generator=generator, device=self.pixels.device, dtype=torch.float64)
        room = (self.sizes[image].T - size) // step + 1
        top, left = (u * room).long().minimum(room - 1).clamp(min=0) * step
        return top, left
