"""The kernel in Triton: the nine taps of 8 x 16 pixels as nine products, then the shuffle as the order of the store."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, check_windows

Tensor = Any

ROWS, COLUMNS = 8, 16  # pixels of a program


@triton.jit(do_not_specialize=["H", "W"])
def upsample_tail_kernel(
    x, w, b, out, H, W,
    COLORS: tl.constexpr, SCALE: tl.constexpr, FACTOR: tl.constexpr,
    CHUNKS: tl.constexpr, N: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    CS: tl.constexpr = 64 * CHUNKS
    BP: tl.constexpr = TH * TW
    tile = tl.program_id(0)
    tiles_across = W // TW
    tiles_down = H // TH
    left = tile % tiles_across * TW
    top = tile // tiles_across % tiles_down * TH
    n = tile // (tiles_across * tiles_down)
    pitch = W + 4

    p = tl.arange(0, BP)
    k = tl.arange(0, 64)
    f = tl.arange(0, N)
    start = ((n * (H + 4) + top + 1).to(tl.int64) * pitch + left + 1) * CS  # the first tap
    here = ((p // TW * pitch + p % TW) * CS)[:, None] + k[None, :]
    weight = k[:, None] * N + f[None, :]
    acc = tl.zeros((BP, N), tl.float32)
    for tap in range(9):
        at = x + start + (tap // 3 * pitch + tap % 3) * CS + here
        from_here = w + tap * (CS * N) + weight
        acc = tl.dot(tl.load(at), tl.load(from_here), acc, input_precision="ieee")
        if CHUNKS > 1:
            acc = tl.dot(tl.load(at + 64), tl.load(from_here + 64 * N), acc, input_precision="ieee")
        if CHUNKS > 2:
            acc = tl.dot(tl.load(at + 128), tl.load(from_here + 128 * N), acc, input_precision="ieee")
    acc = acc * FACTOR + tl.load(b + f)[None, :]

    to = out + n.to(tl.int64) * (COLORS * SCALE * SCALE) * H * W
    if SCALE == 3:
        f = f[None, :]
        p = p[:, None]
        row = (f // 9 * H + top + p // TW) * 3 + f % 9 // 3
        column = (left + p % TW) * 3 + f % 3
    else:  # in rows of the picture
        acc = tl.reshape(
            tl.permute(tl.reshape(acc, (BP, N // SCALE, SCALE)), (1, 0, 2)), (N // SCALE, BP * SCALE)
        )
        f = tl.arange(0, N // SCALE)[:, None] * SCALE
        p = tl.arange(0, BP * SCALE)[None, :]
        row = (f // (SCALE * SCALE) * H + top + p // (TW * SCALE)) * SCALE + f // SCALE % SCALE
        column = left * SCALE + p % (TW * SCALE)
    tl.store(to + row.to(tl.int64) * (W * SCALE) + column, acc, mask=(f < COLORS * SCALE * SCALE) & (p >= 0))


def launch(
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    out: Tensor,
    scale: int,
    factor: float,
    channels: int,
    label: str = "",
) -> Launch:
    """Return a launch; arguments as in reference.upsample_tail."""
    n, colors, h, w = out.shape
    h, w = h // scale, w // scale
    check_windows(h, w)
    stored, features = weights[0].shape[1:]
    results = colors * scale * scale
    return Launch(
        upsample_tail_kernel,
        {"x": x, "w": weights[0], "b": weights[1], "out": out},
        {"H": h, "W": w},
        {
            "COLORS": colors,
            "SCALE": scale,
            "FACTOR": factor,
            "CHUNKS": stored // 64,
            "N": features,
            "TH": ROWS,
            "TW": COLUMNS,
        },
        (n * (h // ROWS) * (w // COLUMNS),),
        warps=4,
        stages=3 if stored == 64 else 1,
        flops=2 * n * h * w * 9 * channels * results,
        moved=n * h * w * (channels * x.element_size() + 4 * results),
        label=label,
    )
