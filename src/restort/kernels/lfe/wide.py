"""The binding of wide.cu, the same for compute capability 9.0 alone: weights as it reads them, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import bits, operand, order
from restort.kernels.launch import Launch

Tensor = Any

KERNEL = CudaKernel("lfe_wide", Path(__file__).with_name("wide.cu"), "bulk.cuh")
CAPABILITY = 90  # wgmma is in no other
SHARED_BYTES = 227 * 1024
CHANNELS = (60, 180)  # those for which warp.cuh has the products


def pack(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor] | None,
    channels: int,
    part: int,
) -> Tensor:
    """All weights of a block, int32, in the kernel's order, biases first; arguments as in reference.lfe.

    `part`: DS.
    """
    w0, b0, w1, b1 = weights
    hidden, tiles = 2 * channels // 5, -(-channels // 8)
    mine = order(tiles)

    biases: list[Tensor] = [b0[:, :hidden].reshape(-1), b1[mine]]
    found: list[Tensor] = []
    for g in range(5):
        found += [operand(w0[g, : 8 * tiles, :hidden]), operand(w1[g, :hidden][:, mine])]
    theirs, share = order(3 * part // 8), _share(part) * 8
    for w, b in (values,) if queries is None else (values, queries):
        matrix = torch.cat([w[i, mine, :part] for i in range(3)], 1)
        bias = torch.cat([b[i, :part] for i in range(3)])
        for first in range(0, 3 * part, share):
            some = theirs[first : first + share]
            found.append(operand(matrix[:, some]))
            biases.append(bias[some])
    return torch.cat([bits(torch.cat(biases).float()), *found])


def _share(part: int) -> int:
    """Tiles of 8 columns in a piece of a projection."""
    made = 3 * part // 8
    return made // 2 if made > 12 else made


def tiles(channels: int) -> dict[str, int]:
    """Warps (8: 16 x 8 pixels, 16: 16 x 16), slots for weights, blocks a multiprocessor, and blocks that share weights.

    CLUSTER 2 needs 8 warps. PERSIST 1, which needs 2 slots: no more blocks than the GPU holds, each of which makes
    several tiles after one another. MIX 1: both products of a stage alternate. With 180 channels this is the
    fastest on an H100 of those that benchmarks/tune_kernels.py tries; with 60 tile.cu is faster.
    """
    if channels <= 64:
        return {"WARPS": 8, "SLOTS": 8, "BLOCKS": 2, "CLUSTER": 1, "PERSIST": 0, "MIX": 1}
    return {"WARPS": 8, "SLOTS": 2, "BLOCKS": 1, "CLUSTER": 2, "PERSIST": 1, "MIX": 0}


def shared_bytes(channels: int, part: int, warps: int, slots: int) -> int:
    """Shared memory of a block; wide.cu asserts the same number."""
    steps, count, hidden = -(-channels // 16), -(-channels // 8), 2 * channels // 5 // 8
    tile = 2 * steps * (18 * (warps + 2) * 16 + 16)
    w0, w1 = 2 * steps * hidden * 128, -(-hidden // 2) * 2 * count * 128
    biases = (5 * hidden + count + 2 * 3 * part // 8) * 32
    return -(-tile // 128) * 128 + slots * max(w0 + w1, 2 * steps * _share(part) * 128) + biases + 64


def fits(channels: int, part: int, capability: int) -> bool:
    """Whether that GPU can run it."""
    cut = tiles(channels)
    return (
        capability == CAPABILITY
        and channels in CHANNELS
        and part == -(-channels // 24) * 8
        and shared_bytes(channels, part, cut["WARPS"], cut["SLOTS"]) <= SHARED_BYTES
    )


def pays(channels: int, part: int, capability: int) -> bool:
    """Whether it fits and is faster there than tile.cu: with 180 channels, not with 60."""
    return channels > 64 and fits(channels, part, capability)


def launch(
    x: Tensor,
    blob: Tensor,
    has_q: bool,
    out: Tensor,
    v: Tensor,
    q: Tensor,
    channels: int,
    capability: int = CAPABILITY,
    label: str = "",
    processors: int = 132,
    **variant: int,
) -> Launch:
    """The launch; arrays as in reference.lfe, `blob` from `pack`. `variant` overrides `tiles`; `out` is not `x`."""
    n, h, w, _ = x.shape
    h, w = h - 4, w - 4
    part = v.shape[3] // 3
    cut = {**tiles(channels), **variant}
    if h % 16 or w % 16:
        raise ValueError(f"{h} x {w} pixels are no multiple of 16")
    constants = {
        "C": channels,
        "DS": part,
        "HAS_Q": int(has_q),
        "BF16": int("bfloat16" in str(x.dtype)),
        "WGMMA": 1,
        "OVERLAP": 0,
        **cut,
        "SHARED": shared_bytes(channels, part, cut["WARPS"], cut["SLOTS"]),
    }
    blocks = n * (h // cut["WARPS"]) * (w // 16)
    if cut["PERSIST"]:
        blocks = min(blocks, processors * cut["BLOCKS"] // cut["CLUSTER"] * cut["CLUSTER"])
    pixels, parts = n * h * w, 6 if has_q else 3
    return Launch(
        KERNEL,
        {"x": x, "blob": blob, "out": out, "v": v, "q": q},
        {"images": n, "h": h, "w": w},
        constants,
        (blocks,),
        warps=cut["WARPS"],
        flops=2 * pixels * channels * (4 * channels + parts * (channels // 3)),
        moved=pixels * x.element_size() * (2 * channels + parts * (channels // 3)),
        label=label,
    )
