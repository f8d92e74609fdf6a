"""The launch of sm90.cu (compute capability 9.0): its tiling and its weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from restort.kernels.fragments import twice_in_int32
from restort.kernels.gdfn.sm80 import launch_of
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import round_up

Tensor = Any

SPEC = KernelSpec("gdfn_sm90", __file__, ("gelu.cuh", "wgmma.cuh", "depthwise_wgmma.cuh"), only_sm90=True)
TILE_W = 16
OCTET = 8  # hidden channels of a warp


class Weights(NamedTuple):
    """Weights of 8 hidden channels at a time: a warp reads each octet as one piece of memory, in its order.

    w  (F/8, C/16, 32, 8) T       the A operands of the expansion: [octet][step][lane][4 pairs]
    p  (F/8, C/8, 8, 8) T         the B operands of the projection: [octet][tile][column][hidden channel]
    t  (F/8, 6, 8, 4) int32       [octet][quarter][hidden channel][word], of these 24 words of a hidden channel:
                                  9 taps of the gate, 9 of the value, biases of both with the shift in them, minus the
                                  shifts of both (all of these twice in a word, and of the value taps and bias the
                                  half), and 2 that are not used
    """

    w: Tensor
    p: Tensor
    t: Tensor


def neighbours(channels: int) -> int:
    """Return how many neighbouring channels of a pixel a thread has."""
    return 8 if channels % 32 == 0 else 4


def pack(w: Tensor, affine: Tensor, dw16: Tensor, out_w: Tensor) -> Weights:
    """Return the kernel's weights from w (2 F, C), affine (2, 2 F), dw16 (10, 2 F) and out_w (F, C)."""
    hidden, channels = out_w.shape
    octets, run = hidden // OCTET, neighbours(channels)
    rows = w.view(2, octets, 8, channels // 16, 2, 4, 2)  # kind, octet, g, step, half, j, of a pair
    fragments = rows.permute(1, 3, 2, 5, 4, 0, 6).reshape(octets, channels // 16, 32, 8)
    columns = out_w.view(octets, 8, channels // (4 * run), 4, run // 2, 2)  # octet, k, run, j, pair, of it
    tiles = columns.permute(0, 2, 4, 3, 5, 1).reshape(octets, channels // 8, 8, 8)
    shift = affine[1].double()
    bias = dw16[9].double()
    inside = (bias + shift * dw16[:9].double().sum(0)).to(dw16.dtype).view(2, hidden)
    taps = dw16[:9]
    words = torch.cat(
        [
            twice_in_int32(taps[:, :hidden]),
            twice_in_int32(taps[:, hidden:] / 2),
            twice_in_int32(inside[:1]),
            twice_in_int32(inside[1:] / 2),
            twice_in_int32(-affine[1].to(dw16.dtype).view(2, hidden)),
            torch.zeros(2, hidden, dtype=torch.int32, device=dw16.device),
        ]
    )
    table = words.view(6, 4, octets, 8).permute(2, 0, 3, 1)
    return Weights(fragments.contiguous(), tiles.contiguous(), table.contiguous())


def tiling(channels: int) -> dict[str, int]:
    """Return the macros of a tiling: 16 x TALL pixels by WARPS warps, BLOCKS per SM."""
    if channels > 96:
        return {"WARPS": 8, "TALL": 8, "BLOCKS": 1}
    return {"WARPS": 4, "TALL": 8, "BLOCKS": 2 if channels > 48 else 3}


def shared_bytes(channels: int, tall: int, warps: int) -> int:
    """Return the shared memory of a block; sm90.cu asserts the same number."""
    columns = channels // 8
    normalised = columns * (128 * 5 * (tall + 2) // 2 + 32)
    gated = warps * 256 * tall
    matrix = round_up(columns * (128 * columns + 16), 128)
    return normalised + gated + max(gated, matrix) + 2 * warps * 128 * columns + 2 * warps * 768


def fits(channels: int, hidden: int, capability: int) -> bool:
    """Return whether the kernel takes such a block and that GPU can run it."""
    chosen = tiling(channels)
    chunk = OCTET * chosen["WARPS"]
    return (
        channels in (48, 96, 192)
        and hidden % chunk == 0
        and hidden > chunk
        and SPEC.fits(shared_bytes(channels, chosen["TALL"], chosen["WARPS"]), capability)
    )


def launch(
    x: Tensor,
    v: Tensor,
    attention: Tensor,
    attention_b: Tensor | None,
    weights: Weights,
    out_b: Tensor | None,
    out: Tensor,
    *,
    centred: bool = True,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch as sm80.launch does, with the weights from `pack`. `out` must not overlap x or v."""
    channels, hidden = x.shape[3], OCTET * weights.w.shape[0]
    chosen = {**tiling(channels), **overrides}
    shared = shared_bytes(channels, chosen["TALL"], chosen["WARPS"])
    tensors = {"w": weights.w, "p": weights.p, "t": weights.t}
    return launch_of(
        SPEC, x, v, attention, attention_b, tensors, out_b, out, hidden, centred, chosen, shared, label
    )
