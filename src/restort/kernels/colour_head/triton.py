"""The kernel in Triton: a program takes pixels of the result in a row, its border of zeros included."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch
from restort.utils.integers import cdiv

Tensor = Any

PIXELS = 128


@triton.jit(do_not_specialize=["count", "H", "W"])
def colour_head_kernel(
    image, offset, w, b, out, blank0, blank1, count, H, W,
    COLORS: tl.constexpr, RANGE: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    CS: tl.constexpr = 64 * CHUNKS
    T = out.dtype.element_ty
    i = tl.program_id(0) * BP + tl.arange(0, BP)
    pitch = W + 4
    x = i % pitch - 2
    y = i // pitch % (H + 4) - 2
    n = i // (pitch * (H + 4))
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & (i < count)

    k = tl.arange(0, K)
    colour = k // 9
    row = y[:, None] + (k % 9 // 3 - 1)[None, :]
    column = x[:, None] + (k % 3 - 1)[None, :]
    there = (
        inside[:, None] & (row >= 0) & (row < H) & (column >= 0) & (column < W) & (colour < COLORS)[None, :]
    )
    plane = n.to(tl.int64)[:, None] * COLORS + colour[None, :]
    a = tl.load(image + (plane * H + row) * W + column, mask=there, other=0.0) * RANGE
    a = tl.where(there, a + tl.load(offset + colour, mask=colour < COLORS, other=0.0)[None, :], 0.0)
    high = a.to(T)
    low = (a - high.to(tl.float32)).to(T)

    to = i.to(tl.int64)[:, None] * CS + tl.arange(0, 64)[None, :]
    for chunk in tl.static_range(CHUNKS):
        f = chunk * 64 + tl.arange(0, 64)
        weight = tl.load(w + k[:, None] * CS + f[None, :])
        result = tl.dot(low, weight, input_precision="ieee")
        result = tl.dot(high, weight, result, input_precision="ieee") + tl.load(b + f)[None, :]
        result = tl.where(inside[:, None], result, 0.0).to(T)
        tl.store(out + chunk * 64 + to, result, mask=(i < count)[:, None])
        zero = tl.zeros((BP, 64), T)
        edge = ((i < count) & (inside == 0))[:, None]
        tl.store(blank0 + chunk * 64 + to, zero, mask=edge)
        tl.store(blank1 + chunk * 64 + to, zero, mask=edge)


def launch(
    image: Tensor,
    offset: Tensor,
    weights: tuple[Tensor, Tensor],
    out: Tensor,
    blanks: tuple[Tensor, Tensor],
    value_range: float,
    channels: int,
    label: str = "",
) -> Launch:
    """Return a launch; arguments as in reference.colour_head. `blanks`: arrays like `out`, whose borders are zeroed."""
    n, colors, h, w = image.shape
    stored = out.shape[3]
    count = n * (h + 4) * (w + 4)
    return Launch(
        colour_head_kernel,
        {
            "image": image,
            "offset": offset,
            "w": weights[0],
            "b": weights[1],
            "out": out,
            "blank0": blanks[0],
            "blank1": blanks[1],
        },
        {"count": count, "H": h, "W": w},
        {
            "COLORS": colors,
            "RANGE": float(value_range),
            "K": weights[0].shape[0],
            "CHUNKS": stored // 64,
            "BP": PIXELS,
        },
        (cdiv(count, PIXELS),),
        warps=4,
        flops=2 * n * h * w * colors * 9 * channels,
        moved=n * h * w * (4 * colors + channels * out.element_size()),
        label=label,
    )
