"""The launch of sm90.cu (compute capability 9.0): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import as_int32, channel_order, wgmma_operand
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch, check_windows
from restort.utils.integers import cdiv, round_up

Tensor = Any

SPEC = KernelSpec("lfe_sm90", __file__, ("wgmma.cuh", "mbarrier.cuh"), only_sm90=True, overlaps=True)
CHANNELS = (180,)  # include/wgmma.cuh has the products; with 60 channels sm80.cu is faster on an H100


def pack(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor] | None,
    channels: int,
    part: int,
) -> Tensor:
    """Return all weights of a block, int32, in the kernel's order, biases first; arguments as in reference.lfe.

    `part`: DS.
    """
    w0, b0, w1, b1 = weights
    hidden, tiles = 2 * channels // 5, cdiv(channels, 8)
    outputs = channel_order(tiles)
    biases: list[Tensor] = [b0[:, :hidden].reshape(-1), b1[outputs]]
    pieces: list[Tensor] = []
    for g in range(5):
        pieces += [wgmma_operand(w0[g, : 8 * tiles, :hidden]), wgmma_operand(w1[g, :hidden][:, outputs])]
    columns, share = channel_order(3 * part // 8), columns_of_piece(part) * 8
    for w, b in (values,) if queries is None else (values, queries):
        matrix = torch.cat([w[i, outputs, :part] for i in range(3)], 1)
        bias = torch.cat([b[i, :part] for i in range(3)])
        for first in range(0, 3 * part, share):
            some = columns[first : first + share]
            pieces.append(wgmma_operand(matrix[:, some]))
            biases.append(bias[some])
    return torch.cat([as_int32(torch.cat(biases).float()), *pieces])


def columns_of_piece(part: int) -> int:
    """Return the tiles of 8 columns in a piece of a projection."""
    columns = 3 * part // 8
    return columns // 2 if columns > 12 else columns


def tiling() -> dict[str, int]:
    """Return the macros of a tiling: WARPS (8: 16 x 8 pixels), SLOTS for weights, CLUSTER blocks that share them.

    A block makes several tiles after one another, so there are no more blocks than the GPU holds: BLOCKS per SM.
    """
    return {"WARPS": 8, "SLOTS": 2, "BLOCKS": 1, "CLUSTER": 2}


def shared_bytes(channels: int, part: int, warps: int, slots: int) -> int:
    """Return the shared memory of a block; sm90.cu asserts the same number."""
    steps, count, hidden = cdiv(channels, 16), cdiv(channels, 8), 2 * channels // 5 // 8
    tile = 2 * steps * (18 * (warps + 2) * 16 + 16)
    w0, w1 = 2 * steps * hidden * 128, round_up(hidden, 2) * count * 128
    biases = (5 * hidden + count + 2 * 3 * part // 8) * 32
    slot = max(w0 + w1, 2 * steps * columns_of_piece(part) * 128)
    return round_up(tile, 128) + slots * slot + biases + 64


def fits(channels: int, part: int, capability: int) -> bool:
    """Return whether that GPU can run it. It is faster than sm80.cu then."""
    chosen = tiling()
    return (
        channels in CHANNELS
        and part == cdiv(channels, 24) * 8
        and SPEC.fits(shared_bytes(channels, part, chosen["WARPS"], chosen["SLOTS"]), capability)
    )


def launch(
    x: Tensor,
    blob: Tensor,
    has_q: bool,
    out: Tensor,
    v: Tensor,
    q: Tensor,
    channels: int,
    label: str = "",
    num_sms: int = 132,
    **overrides: int,
) -> Launch:
    """Return a launch; arrays as in reference.lfe, `blob` from `pack`. `out` must not be `x`.

    `overrides` replaces macros of `tiling`.
    """
    n, h, w, _ = x.shape
    h, w = h - 4, w - 4
    part = v.shape[3] // 3
    chosen = {**tiling(), **overrides}
    check_windows(h, w)
    tiles = n * (h // chosen["WARPS"]) * (w // 16)
    clusters = num_sms * chosen["BLOCKS"] // chosen["CLUSTER"]
    pixels, parts = n * h * w, 6 if has_q else 3
    return SPEC.launch(
        {"x": x, "blob": blob, "out": out, "v": v, "q": q},
        {"images": n, "h": h, "w": w},
        {"C": channels, "DS": part, "HAS_Q": int(has_q), **chosen},
        (min(tiles, clusters * chosen["CLUSTER"]),),
        dtype=x.dtype,
        shared=shared_bytes(channels, part, chosen["WARPS"], chosen["SLOTS"]),
        flops=2 * pixels * channels * (4 * channels + parts * (channels // 3)),
        moved=pixels * x.element_size() * (2 * channels + parts * (channels // 3)),
        label=label,
    )
