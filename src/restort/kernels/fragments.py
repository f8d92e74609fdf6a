"""Weights in the order in which CUDA kernels multiply them: right operands of mma.m16n8k16 and of wgmma.

PTX ISA, "Matrix fragments for mma.m16n8k16": a matrix of K x N is cut in steps of 16 rows and tiles of 8 columns. Of
each, lane 4 g + j of a warp holds rows 2j, 2j + 1 and the two that are 8 further on, of column g. Kernels load 16 bytes
of a lane at a time.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any


def channel_order(tiles: int) -> list[int]:
    """Return the channel of each column of so many tiles, such that a thread's eight of four tiles are neighbours."""
    channels = []
    for first in range(0, tiles, 4):
        count = min(4, tiles - first)
        channels += [8 * first + 2 * count * (c // 2) + 2 * t + c % 2 for t in range(count) for c in range(8)]
    return channels


def mma_fragments(matrix: Tensor) -> Tensor:
    """(K, N) -> (K / 16, N / 8, 32 lanes, 2 parts, 2): what each lane holds of a step and a tile."""
    k, n = matrix.shape
    parts = matrix.reshape(k // 16, 2, 4, 2, n // 8, 8)  # step, part, j, e, tile, g
    return parts.permute(0, 4, 5, 2, 1, 3).reshape(k // 16, n // 8, 32, 2, 2)


def as_int32(array: Tensor) -> Tensor:
    """Return the array's memory as int32, in which weights of several types can lie one after another."""
    return array.contiguous().view(torch.int32)


def twice_in_int32(numbers: Tensor) -> Tensor:
    """16-bit numbers -> int32 words that hold each of them twice: operands of packed arithmetic (fma.rn.f16x2)."""
    bits = numbers.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    return bits | bits << 16


def wgmma_operand(matrix: Tensor) -> Tensor:
    """(K, N) -> int32 in the order of a wgmma descriptor: 8 x 8 pieces, a column's 8 rows together.

    Rows are padded to a multiple of 16 with zeros.
    """
    k, n = matrix.shape
    padded = torch.cat([matrix, matrix.new_zeros(-k % 16, n)])
    return as_int32(padded.reshape(-1, 8, n // 8, 8).permute(0, 2, 3, 1).reshape(-1))
