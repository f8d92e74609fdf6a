"""The launch of sm90.cu (compute capability 9.0): its tiling and its weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from restort.kernels.fragments import twice_in_int32
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.kernels.mdta_gram.sm80 import launch_of
from restort.utils.integers import cdiv, even_workers

Tensor = Any

SPEC = KernelSpec("mdta_gram_sm90", __file__, ("wgmma.cuh", "depthwise_wgmma.cuh"), only_sm90=True)
TILE_W = 16
PART = 48  # q channels of a warp's part of a Gram matrix


class Weights(NamedTuple):
    """Weights of 16 channels at a time, v's, then q's, then k's: a warp reads each unit as one piece of memory.

    Channels 4 i, 4 i + 1 of 16 are in the first half of such a unit, the next two in the second.
    w  (3 C/16, C/16, 32, 8) T    the A operands of the expansion: [unit][step][lane][4 pairs]
    t  (3 C/16, 6, 8, 4) int32    [unit][quarter][number in its half][word], of these 24 words:
                                  9 taps of the channel of the first half, 9 of the second, biases of both with the
                                  shift in them, minus the shifts of both (all of these twice in a word), 2 of 0
    """

    w: Tensor
    t: Tensor


def pack(w: Tensor, affine: Tensor, dw16: Tensor) -> Weights:
    """Return the kernel's weights from those of sm80.launch: w (3 C, C), affine (2, 3 C), dw16 (10, 3 C)."""
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

    outside = twice_in_int32(halves(-shift.to(dw16.dtype)[None]))[:, 0]
    taps = twice_in_int32(halves(dw16[:9]))
    biases = twice_in_int32(halves(inside[None]))[:, 0]
    words = torch.cat([taps[0], taps[1], biases, outside, torch.zeros_like(outside)])
    table = words.view(6, 4, units, 8).permute(2, 0, 3, 1)
    return Weights(fragments.contiguous(), table.contiguous())


def tiling(channels: int) -> dict[str, int]:
    """Return the macros of a tiling: 16 x TALL pixels by WARPS warps, BLOCKS per SM.

    AHEAD 1: the next weights of the expansion are asked for a whole pass before their use. GRAM: rows of pixels of the
    Gram products that are unrolled.
    """
    if channels > 96:
        return {"WARPS": 12, "TALL": 8, "BLOCKS": 1, "AHEAD": 0, "GRAM": 2}
    few = channels <= 48
    return {"WARPS": 4, "TALL": 8, "BLOCKS": 3 if few else 2, "AHEAD": int(not few), "GRAM": 2}


def part_k(channels: int, heads: int, warps: int) -> int:
    """Return the k channels of a warp's part: the fewest that give every warp as many parts, 0 where none do."""
    ch = channels // heads
    for columns in (16, 24, 32, 48, 96):
        if ch % columns == 0 and warps % (heads * (ch // PART) * (ch // columns)) == 0:
            return columns
    return 0


def shared_bytes(channels: int, tall: int, warps: int) -> int:
    """Return the shared memory of a block; sm90.cu asserts the same number."""
    of_v = channels // 16
    later, passes, last = cdiv(of_v, warps), cdiv(3 * of_v, warps), 3 * of_v % warps
    apart = min(of_v, warps) if later >= passes - (last > 0) else 0
    normalised = channels // 8 * (128 * 5 * (tall + 2) // 2 + 32)
    return normalised + (2 * of_v + apart) * 512 * tall + 3 * of_v * 768 + 8 * channels


def fits(channels: int, heads: int, capability: int) -> bool:
    """Return whether the kernel takes such a block and that GPU can run it."""
    chosen = tiling(channels)
    return (
        channels in (48, 96, 192)
        and channels % heads == 0
        and channels // heads in (48, 96)
        and part_k(channels, heads, chosen["WARPS"]) > 0
        and SPEC.fits(shared_bytes(channels, chosen["TALL"], chosen["WARPS"]), capability)
    )


def splits(n: int, h: int, w: int, channels: int, num_sms: int = 132, **overrides: int) -> int:
    """Return how many blocks share an image, which is the number of partial sums: as many as the GPU runs at once."""
    chosen = {**tiling(channels), **overrides}
    tiles = cdiv(w, TILE_W) * cdiv(h, chosen["TALL"])
    together = max(1, chosen["BLOCKS"] * num_sms // n)
    return even_workers(tiles, together)


def launch(
    x: Tensor,
    weights: Weights,
    v: Tensor,
    sums: Tensor,
    *,
    centred: bool = True,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch as sm80.launch does, with the weights from `pack`. v must not overlap x.

    sums (splits, N, heads, ch * (ch + 2)) float32, partial, with as many splits as `splits` says, or any other number.
    """
    channels = x.shape[3]
    chosen = {**tiling(channels), **overrides}
    chosen.setdefault("PART_K", part_k(channels, sums.shape[2], chosen["WARPS"]))
    shared = shared_bytes(channels, chosen["TALL"], chosen["WARPS"])
    return launch_of(SPEC, x, {"w": weights.w, "t": weights.t}, v, sums, centred, chosen, shared, label)
