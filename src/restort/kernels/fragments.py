"""Weights in the order in which a CUDA kernel multiplies them (right operands of mma.m16n8k16 and of wgmma).

A matrix of K x N is cut in steps of 16 rows and tiles of 8 columns; of each, lane 4 g + j of a warp has rows 2j,
2j + 1 and those 8 on, of column g. Kernels want 16 bytes of a lane together.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any


def order(tiles: int) -> list[int]:
    """The channel that each column of so many tiles is: a thread's, two in each of four tiles, lie together."""
    found = []
    for first in range(0, tiles, 4):
        count = min(4, tiles - first)
        found += [8 * first + 2 * count * (c // 2) + 2 * t + c % 2 for t in range(count) for c in range(8)]
    return found


def units(matrix: Tensor) -> Tensor:
    """(K, N) -> (K / 16, N / 8, 32 lanes, 2 parts, 2): what a lane needs for a step and a tile."""
    k, n = matrix.shape
    parts = matrix.reshape(k // 16, 2, 4, 2, n // 8, 8)  # step, part, j, e, tile, g
    return parts.permute(0, 4, 5, 2, 1, 3).reshape(k // 16, n // 8, 32, 2, 2)


def bits(array: Tensor) -> Tensor:
    """The same memory as int32."""
    return array.contiguous().view(torch.int32)


def operand(matrix: Tensor) -> Tensor:
    """(K, N) as wgmma's, int32: 8 x 8 pieces, of each column 8 rows together; rows are padded to 16s with zeros."""
    k, n = matrix.shape
    padded = torch.cat([matrix, matrix.new_zeros(-k % 16, n)])
    return bits(padded.reshape(-1, 8, n // 8, 8).permute(0, 2, 3, 1).reshape(-1))
