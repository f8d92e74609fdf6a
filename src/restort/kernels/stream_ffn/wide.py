"""The binding of wide.cu, the same for compute capability 9.0 alone: weights as it reads them, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from restort.kernels.cuda import CudaKernel
from restort.kernels.launch import Launch

Tensor = Any

KERNEL = CudaKernel("stream_ffn_wide", Path(__file__).with_name("wide.cu"), "turned.cuh")
WIDE = 16
CAPABILITY = 90  # wgmma is in no other
SHARED_BYTES = 227 * 1024
OCTET = 8  # hidden channels of a warp


class Weights(NamedTuple):
    """Of hidden channels 8 at a time: what a warp reads is one piece of memory, in the order in which it is read.

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


def run(channels: int) -> int:
    """Neighbouring channels of a pixel that a thread has."""
    return 8 if channels % 32 == 0 else 4


def pack(w: Tensor, affine: Tensor, dw16: Tensor, out_w: Tensor) -> Weights:
    """From what kernel.launch takes: w (2 F, C), affine (2, 2 F), dw16 (10, 2 F), out_w (F, C)."""
    hidden, channels = out_w.shape
    octets, length = hidden // OCTET, run(channels)
    rows = w.view(2, octets, 8, channels // 16, 2, 4, 2)  # kind, octet, g, step, half, j, of a pair
    fragments = rows.permute(1, 3, 2, 5, 4, 0, 6).reshape(octets, channels // 16, 32, 8)
    columns = out_w.view(
        octets, 8, channels // (4 * length), 4, length // 2, 2
    )  # octet, k, run, j, pair, of it
    tiles = columns.permute(0, 2, 4, 3, 5, 1).reshape(octets, channels // 8, 8, 8)
    shift = affine[1].double()
    bias = dw16[9].double()
    inside = (bias + shift * dw16[:9].double().sum(0)).to(dw16.dtype)
    inside, taps = inside.view(2, hidden), dw16[:9]
    words = torch.stack([*_twice(taps[:, :hidden]), *_twice(taps[:, hidden:] / 2),
                         *_twice(inside[:1]), *_twice(inside[1:] / 2),
                         *_twice(-affine[1].to(dw16.dtype).view(2, hidden)),
                         *torch.zeros(2, hidden, dtype=torch.int32, device=dw16.device)])  # fmt: skip
    table = words.view(6, 4, octets, 8).permute(2, 0, 3, 1)
    return Weights(fragments.contiguous(), tiles.contiguous(), table.contiguous())


def _twice(numbers: Tensor) -> Tensor:
    """16-bit numbers, each twice in an int32."""
    bits = numbers.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    return bits | bits << 16


def tiles(channels: int, capability: int = CAPABILITY) -> dict[str, int]:
    """How a picture is cut up: tiles of 16 x TALL pixels by WARPS warps, BLOCKS a multiprocessor.

    AHEAD 1: the next weights of the expansion are asked for a whole chunk before their use.
    """
    if channels > 96:
        return {"WARPS": 8, "TALL": 8, "BLOCKS": 1, "AHEAD": 0}
    if channels > 48:
        return {"WARPS": 4, "TALL": 8, "BLOCKS": 2, "AHEAD": 0}
    return {"WARPS": 4, "TALL": 8, "BLOCKS": 3, "AHEAD": 0}


def shared_bytes(channels: int, tall: int, warps: int, apply: bool = True) -> int:
    """Shared memory of a block; wide.cu asserts the same number."""
    columns = channels // 8
    normalised = columns * (128 * 5 * (tall + 2) // 2 + 32)
    fold = -(-columns * (128 * columns + 16) // 128) * 128 if apply else 0
    return (
        normalised
        + warps * 256 * tall
        + max(warps * 256 * tall, fold)
        + 2 * warps * 128 * columns
        + 2 * warps * 768
    )


def fits(channels: int, hidden: int, capability: int) -> bool:
    """Whether the kernel takes such a block."""
    cut = tiles(channels, capability)
    chunk = OCTET * cut["WARPS"]
    return (
        capability == CAPABILITY
        and channels in (48, 96, 192)
        and hidden % chunk == 0
        and hidden > chunk
        and shared_bytes(channels, cut["TALL"], cut["WARPS"]) <= SHARED_BYTES
    )


def launch(
    x: Tensor,
    v: Tensor | None,
    fold: Tensor | None,
    fold_b: Tensor | None,
    weights: Weights,
    out_b: Tensor | None,
    out: Tensor,
    *,
    centred: bool = True,
    capability: int = CAPABILITY,
    label: str = "",
    **variant: int,
) -> Launch:
    """A call of the kernel, as kernel.launch, with the weights from `pack`. `out` must not overlap x or v."""
    n, h, width, channels = x.shape
    hidden = OCTET * weights.w.shape[0]
    cut = {**tiles(channels, capability), "GELU": 1 if "bfloat16" in str(x.dtype) else 2, **variant}
    constants = {
        "C": channels,
        "F": hidden,
        "APPLY": int(v is not None),
        "CENTRED": int(centred),
        "FOLD_BIAS": int(fold_b is not None),
        "OUT_BIAS": int(out_b is not None),
        "BF16": int("bfloat16" in str(x.dtype)),
        "WGMMA": 1,
        **cut,
        "SHARED": shared_bytes(channels, cut["TALL"], cut["WARPS"], v is not None),
    }
    pixels = n * h * width
    products = 3 * channels * hidden + (channels * channels if v is not None else 0)
    spare = weights.t.view(torch.float32)  # for biases that are not there
    return Launch(
        KERNEL,
        {
            "x": x,
            "v": x if v is None else v,
            "fold": weights.w if fold is None else fold,
            "fold_b": spare if fold_b is None else fold_b,
            "w": weights.w,
            "p": weights.p,
            "t": weights.t,
            "out_b": spare if out_b is None else out_b,
            "out": out,
        },
        {"h": h, "w_pixels": width},
        constants,
        (-(-width // WIDE), -(-h // cut["TALL"]), n),
        warps=cut["WARPS"],
        flops=2 * pixels * (products + 18 * hidden),
        moved=pixels * channels * 2 * (3 if v is not None else 2),
        label=label,
    )
