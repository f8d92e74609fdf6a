"""The binding of wide.cu, the same for compute capability 9.0 alone: weights as it reads them, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from restort.kernels.cuda import CudaKernel
from restort.kernels.launch import Launch

Tensor = Any

KERNEL = CudaKernel("stream_gram_wide", Path(__file__).with_name("wide.cu"), "turned.cuh")
WIDE = 16
CAPABILITY = 90  # wgmma is in no other
SHARED_BYTES = 227 * 1024
PART = 48  # q channels of a warp's part of a Gram matrix


class Weights(NamedTuple):
    """Of channels 16 at a time, v's, then q's, then k's: what a warp reads is one piece of memory, in its order.

    Channels 4 i, 4 i + 1 of 16 are in the first half of such a unit, the next two in the second.
    w  (3 C/16, C/16, 32, 8) T    the A operands of the expansion: [unit][step][lane][4 pairs]
    t  (3 C/16, 6, 8, 4) int32    [unit][quarter][number in its half][word], of these 24 words:
                                  9 taps of the channel of the first half, 9 of the second, biases of both with the
                                  shift in them, minus the shifts of both (all of these twice in a word), 2 of 0
    """

    w: Tensor
    t: Tensor


def pack(w: Tensor, affine: Tensor, dw16: Tensor) -> Weights:
    """From what kernel.launch takes: w (3 C, C), affine (2, 3 C), dw16 (10, 3 C)."""
    rows, channels = w.shape
    units, steps = rows // 16, channels // 16
    # unit, g / 2, half, g % 2; step, half of it, j, of a pair
    parts = w.roll(channels, 0).view(units, 4, 2, 2, steps, 2, 4, 2)
    fragments = parts.permute(0, 4, 1, 3, 6, 5, 2, 7).reshape(units, steps, 32, 8)
    bias, shift = dw16[9], affine[1]
    inside = (bias.double() + shift.double() * dw16[:9].double().sum(0)).to(dw16.dtype)

    def halves(numbers: Tensor) -> Tensor:
        """(K, 3 C) -> (2, K, units, 8)."""
        split = numbers.roll(channels, 1).view(-1, units, 4, 2, 2)
        return split.permute(3, 0, 1, 2, 4).reshape(2, -1, units, 8)

    outside = _twice(halves(-shift.to(dw16.dtype)[None]))[:, 0]
    taps = _twice(halves(dw16[:9]))
    words = torch.cat([taps[0], taps[1],
                       _twice(halves(inside[None]))[:, 0], outside, torch.zeros_like(outside)])  # fmt: skip
    table = words.view(6, 4, units, 8).permute(2, 0, 3, 1)
    return Weights(fragments.contiguous(), table.contiguous())


def _twice(numbers: Tensor) -> Tensor:
    """16-bit numbers, each twice in an int32."""
    bits = numbers.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    return bits | bits << 16


def tiles(channels: int) -> dict[str, int]:
    """How a picture is cut up: tiles of 16 x TALL pixels by WARPS warps, BLOCKS a multiprocessor.

    AHEAD 1: the next weights of the expansion are asked for a whole pass before their use. GRAM: rows of pixels of the
    Gram products that are unrolled.
    """
    if channels > 96:
        return {"WARPS": 12, "TALL": 8, "BLOCKS": 1, "AHEAD": 0, "GRAM": 2}
    few = channels <= 48
    return {"WARPS": 4, "TALL": 8, "BLOCKS": 3 if few else 2, "AHEAD": int(not few), "GRAM": 2}


def part_k(channels: int, heads: int, warps: int) -> int:
    """The k channels of a warp's part: as few as give every warp as many parts; 0 where none do."""
    ch = channels // heads
    for columns in (16, 24, 32, 48, 96):
        if ch % columns == 0 and warps % (heads * (ch // PART) * (ch // columns)) == 0:
            return columns
    return 0


def shared_bytes(channels: int, tall: int, warps: int) -> int:
    """Shared memory of a block; wide.cu asserts the same number."""
    of_v = channels // 16
    later, passes, last = -(-of_v // warps), -(-3 * of_v // warps), 3 * of_v % warps
    apart = min(of_v, warps) if later >= passes - (last > 0) else 0
    normalised = channels // 8 * (128 * 5 * (tall + 2) // 2 + 32)
    return normalised + (2 * of_v + apart) * 512 * tall + 3 * of_v * 768 + 8 * channels


def fits(channels: int, heads: int, capability: int) -> bool:
    """Whether the kernel takes such a block."""
    cut = tiles(channels)
    return (
        capability == CAPABILITY
        and channels in (48, 96, 192)
        and channels % heads == 0
        and channels // heads in (48, 96)
        and part_k(channels, heads, cut["WARPS"]) > 0
        and shared_bytes(channels, cut["TALL"], cut["WARPS"]) <= SHARED_BYTES
    )


def splits(n: int, h: int, w: int, channels: int, processors: int = 132, **variant: int) -> int:
    """How many blocks share an image, which is how many partial sums there are: what the GPU runs at once."""
    cut = {**tiles(channels), **variant}
    count = -(-w // WIDE) * -(-h // cut["TALL"])
    together = max(1, cut["BLOCKS"] * processors // n)
    rounds = -(-count // together)
    return -(-count // rounds)  # no more blocks than the longest of them needs


def launch(
    x: Tensor,
    weights: Weights,
    v: Tensor,
    sums: Tensor,
    *,
    centred: bool = True,
    label: str = "",
    **variant: int,
) -> Launch:
    """A call of the kernel, as kernel.launch, with the weights from `pack`. v must not overlap x.

    sums (splits, N, heads, ch * (ch + 2)) float32, with as many splits as `splits` here says, or other ones: partial.
    """
    n, h, width, channels = x.shape
    heads = sums.shape[2]
    cut = {**tiles(channels), **variant}
    cut.setdefault("PART_K", part_k(channels, heads, cut["WARPS"]))
    constants = {
        "C": channels,
        "HEADS": heads,
        "CENTRED": int(centred),
        "GELU": 0,
        "BF16": int("bfloat16" in str(x.dtype)),
        "WGMMA": 1,
        **cut,
        "SHARED": shared_bytes(channels, cut["TALL"], cut["WARPS"]),
    }
    pixels = n * h * width
    return Launch(
        KERNEL,
        {"x": x, "w": weights.w, "t": weights.t, "v": v, "sums": sums},
        {"h": h, "width": width},
        constants,
        (sums.shape[0], n),
        warps=cut["WARPS"],
        flops=2 * pixels * channels * (3 * channels + 27 + channels // heads),
        moved=pixels * channels * 4 + sums.numel() * 4,
        label=label,
    )
