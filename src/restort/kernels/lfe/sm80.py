"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.fragments import as_int32, channel_order, mma_fragments
from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch, check_windows
from restort.utils.integers import cdiv, round_up

Tensor = Any

SPEC = KernelSpec("lfe_sm80", __file__, overlaps=True)
HIDDEN = 24  # hidden channels a step


def supports(channels: int, hidden: int, dtype: Any) -> bool:
    """Return whether the kernel can run this network: groups in halves of 16 bytes, hidden channels in 24s."""
    return (
        channels % 20 == 0
        and channels <= 192
        and hidden == 2 * channels // 5
        and hidden % HIDDEN == 0
        and dtype.itemsize == 2
    )


def _steps(matrix: Tensor) -> Tensor:
    """Order two steps of all tiles after one another, 16 bytes of a lane at a time."""
    fragments = mma_fragments(matrix)
    steps, tiles = fragments.shape[:2]
    pairs = fragments.reshape(steps // 2, 2 * tiles, 32, 2, 2).permute(0, 2, 1, 3, 4)
    return pairs.reshape(steps // 2, 32, tiles, 8).transpose(1, 2).reshape(-1)


def _columns(matrix: Tensor) -> Tensor:
    """Order 24 rows of four tiles after one another, 16 bytes of a lane at a time."""
    padded = torch.cat([matrix, matrix.new_zeros(8, matrix.shape[1])])
    fragments = mma_fragments(padded)  # (2, tiles, 32, 2, 2): 16 rows, then 8
    three = torch.cat([fragments[0], fragments[1][:, :, :1]], 2)  # (tiles, 32, 3, 2)
    fours = three.reshape(-1, 4, 32, 3, 2).permute(0, 2, 1, 3, 4).reshape(-1, 32, 3, 8)
    return fours.transpose(1, 2).reshape(-1)


def _bias(array: Tensor) -> Tensor:
    """Return a bias as int32, padded to at least 32 words."""
    array = array.float()
    return as_int32(torch.cat([array, array.new_zeros(max(0, 32 - len(array)))]))


def pack(
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor] | None,
    channels: int,
    part: int,
) -> Tensor:
    """Return all weights of a block, int32, in the kernel's order; arguments as in reference.lfe. `part`: DS."""
    w0, b0, w1, b1 = weights
    hidden = 2 * channels // 5
    rows = round_up(channels, 32)
    tiles = cdiv(channels, 8)
    outputs = channel_order(tiles)
    inputs = outputs + list(range(8 * tiles, rows))
    padded = torch.cat([w1[:, :, outputs], w1.new_zeros(5, w1.shape[1], (-tiles % 4) * 8)], 2)
    pieces = []
    for g in range(5):
        for first in range(0, hidden, HIDDEN):
            piece = slice(first, first + HIDDEN)
            pieces += [
                as_int32(_steps(w0[g, :rows, piece])),
                as_int32(_columns(padded[g, piece])),
                _bias(b0[g, piece]),
            ]
    for w, b in (values, queries or values):
        matrix = torch.cat([w[i, inputs, :part] for i in range(3)], 1)
        bias = torch.cat([b[i, :part] for i in range(3)])
        columns = channel_order(3 * part // 8)
        for first in range(0, 3 * part, 32):
            some = columns[first : first + 32]
            pieces += [as_int32(_steps(matrix[:, some])), _bias(bias[some])]
    return torch.cat([*pieces, as_int32(b1[outputs].float())])


def tiling(channels: int, capability: int) -> dict[str, int]:
    """Return the macros of a tiling: WARPS (two rows of 16 pixels each), STAGES, BLOCKS per SM.

    STAGES: pieces of weights in the ring, or 0 to keep them all.
    """
    if channels > 64:
        return {"WARPS": 4, "STAGES": 2, "BLOCKS": 1}
    if shared_memory_limit(capability) > 200 << 10:
        return {"WARPS": 8, "STAGES": 0, "BLOCKS": 2}
    return {"WARPS": 4, "STAGES": 0, "BLOCKS": 1}


def fits(channels: int, part: int, capability: int) -> bool:
    """Return whether that GPU has the shared memory for a block."""
    chosen = tiling(channels, capability)
    return SPEC.fits(shared_bytes(channels, part, True, chosen["WARPS"], chosen["STAGES"]), capability)


def shared_bytes(channels: int, part: int, has_q: bool, warps: int, stages: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    steps, count = cdiv(channels, 32) * 2, cdiv(channels, 8)
    tile = 18 * (2 * warps + 2) * (steps * 32 + 16)
    piece = (steps // 2 + cdiv(count, 4)) * 3 * 512 + 128
    columns = 3 * part // 8
    projection = steps // 2 * columns * 512 + cdiv(columns, 4) * 128
    weights = stages * piece or 2 * channels // 24 * piece + (2 if has_q else 1) * projection
    return round_up(tile, 128) + weights


def launch(
    x: Tensor,
    blob: Tensor,
    has_q: bool,
    out: Tensor,
    v: Tensor,
    q: Tensor,
    channels: int,
    capability: int = 90,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; arrays as in reference.lfe, `blob` from `pack`. `overrides` replaces macros of `tiling`."""
    n, h, w, _ = x.shape
    h, w = h - 4, w - 4
    part = v.shape[3] // 3
    chosen = {**tiling(channels, capability), **overrides}
    check_windows(h, w)
    pixels, parts = n * h * w, 6 if has_q else 3
    return SPEC.launch(
        {"x": x, "blob": blob, "out": out, "v": v, "q": q},
        {"h": h, "w": w},
        {"C": channels, "DS": part, "HAS_Q": int(has_q), **chosen},
        (w // 16, h // (2 * chosen["WARPS"]), n),
        dtype=x.dtype,
        shared=shared_bytes(channels, part, has_q, chosen["WARPS"], chosen["STAGES"]),
        flops=2 * pixels * channels * (4 * channels + parts * (channels // 3)),
        moved=pixels * x.element_size() * (2 * channels + parts * (channels // 3)),
        label=label,
    )
