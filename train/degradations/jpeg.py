"""A JPEG round trip of a batch: what libjpeg's encoder and decoder make of a picture, without the entropy coding.

Baseline JPEG (ITU-T T.81) in JFIF's colours: RGB to YCbCr, chroma averaged (4:2:0, 4:2:2) or not (4:4:4), 8x8 DCT,
division by the tables of annex K scaled by quality as libjpeg scales them, and back, chroma enlarged by libjpeg's
triangle filter ("fancy upsampling"). Values are rounded to 8 bits where codecs hold 8 bits.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from train.degradations.colour import constant, to_rgb, to_ycc
from train.degradations.draw import Draw

# ITU-T T.81, annex K, tables K.1 and K.2, row by row
LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip

S444, S422, S420 = 0, 1, 2  # how chroma is sampled: as it is, half the columns, half the columns and rows


@lru_cache(maxsize=1)
def _dct() -> tuple[tuple[float, ...], ...]:
    """(64, 64): row 8 u + v is the basis picture of frequency (u, v), orthonormal."""

    def basis(u: int, i: int) -> float:
        return math.sqrt((1 if u == 0 else 2) / 8) * math.cos((2 * i + 1) * u * math.pi / 16)

    return tuple(
        tuple(basis(u, i) * basis(v, j) for i in range(8) for j in range(8))
        for u in range(8)
        for v in range(8)
    )


def tables(quality: Tensor, base: tuple[int, ...]) -> Tensor:
    """(N, ...) qualities 1..100 to (N, 1, 1, 64) quantisation tables, as libjpeg's jpeg_set_quality makes them."""
    q = quality.round().clamp(1, 100).view(-1, 1, 1, 1)
    scale = torch.where(q < 50, torch.floor(5000 / q), 200 - 2 * q)
    return torch.floor((constant(base, quality.device) * scale + 50) / 100).clamp(1, 255)


def _code(planes: Tensor, table: Tensor) -> Tensor:
    """(N, C, H, W) in 0..255 through DCT, quantisation and inverse DCT; H and W multiples of 8."""
    n, c, h, w = planes.shape
    basis = constant(_dct(), planes.device)
    blocks = planes.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4).reshape(n, c, -1, 64) - 128
    coefficients = torch.round(blocks @ basis.T / table) * table
    blocks = (coefficients @ basis + 128).round().clamp(0, 255)
    return blocks.view(n, c, h // 8, w // 8, 8, 8).transpose(3, 4).reshape(n, c, h, w)


def _average(chroma: Tensor, rows: int) -> Tensor:
    """Mean of `rows` x 2 pixels as libjpeg computes it: the rounding alternates from column to column."""
    total = F.avg_pool2d(chroma, (rows, 2)) * (2 * rows)
    column = torch.arange(total.shape[-1], device=chroma.device) % 2
    bias = column + (1 if rows == 2 else 0)
    return torch.floor((total + bias) / (2 * rows))


def _enlarge(chroma: Tensor, rows: int) -> Tensor:
    """Twice the columns, `rows` times the rows, by the triangle filter (3/4 of the nearest, 1/4 of the next)."""
    size = (chroma.shape[-2] * rows, chroma.shape[-1] * 2)
    return F.interpolate(chroma, size=size, mode="bilinear", align_corners=False).round()


@torch.no_grad()
def jpeg(x: Tensor, quality: Tensor, sampling: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], saved as JPEG and read again: multiples of 1 / 255.

    `quality` and `sampling` (S444, S422 or S420) hold one value per sample. H and W must be multiples of 16: the
    grid then lies at the top left corner; `random_windows` afterwards moves it.
    """
    if x.shape[-1] % 16 or x.shape[-2] % 16:
        raise ValueError(f"H and W must be multiples of 16, not {tuple(x.shape[-2:])}")
    with torch.autocast(x.device.type, enabled=False), full_precision():
        ycc = to_ycc((x.float().clamp(0, 1) * 255).round())
        luma = ycc[:, :1].round().clamp(0, 255)
        chroma = (ycc[:, 1:] + 128).round().clamp(0, 255)
        table = tables(quality, CHROMINANCE)
        kind = sampling.view(-1, 1, 1, 1)
        decoded = _code(chroma, table)
        for which, rows in ((S422, 1), (S420, 2)):
            small = _average(chroma, rows)
            # 4:2:2 of an odd number of blocks cannot occur: H and W are multiples of 16
            decoded = torch.where(kind == which, _enlarge(_code(small, table), rows), decoded)
        luma = _code(luma, tables(quality, LUMINANCE))
        return to_rgb(torch.cat((luma, decoded - 128), 1)).round().clamp(0, 255) / 255


class full_precision:
    """float32 products without TF32 inside a `with` block; restores the settings afterwards."""

    def __enter__(self) -> None:
        self.kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.kept


def draw_sampling(n: int, draw: Draw) -> Tensor:
    """4:2:0 in four of five, as cameras, phones and the web have it; the rest 4:2:2 or 4:4:4."""
    u = draw.uniform(n)
    return torch.where(u < 0.8, S420, torch.where(u < 0.86, S422, S444))
