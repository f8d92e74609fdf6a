"""The kernel in Triton.

A program takes one or two quads of 8 x 8 pixels, each in the order of its four squares of 4 x 4, as queries, and for
each of the three window sizes the keys of the windows they lie in. A window of 16 holds them all. Where the windows are
not moved, a quad is a window of 8 and its squares those of 4: the keys are the queries. Where they are moved by half
their size, each square lies in another window of 8 (64 keys) and touches four of 4, in 8 x 8 pixels: a product for each
square. As all programs own their pixels, the output projection and the residual sum follow at once, in place.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, check_windows, triton_launch

Tensor = Any

BORDER = 2
WINDOWS = (4, 8, 16)


@triton.jit
def _around(i, size):
    """i mod size, for -size <= i < 2 * size."""
    i = tl.where(i < 0, i + size, i)
    return tl.where(i >= size, i - size, i)


@triton.jit
def _rows(base, pixel, d, DS: tl.constexpr, DP: tl.constexpr):
    """Load columns of pixels from rows of 3 * DS."""
    at = base + pixel * (3 * DS) + d
    if DS == DP:
        return tl.load(at)
    return tl.load(at, mask=(d < DS) & (pixel >= 0), other=0.0)


@triton.jit
def _attend(s, v, axis: tl.constexpr):
    """softmax(s) v over all keys at once; s is in powers of two."""
    p = tl.exp2(s - tl.max(s, axis, keep_dims=True))
    return tl.dot(p.to(v.dtype), v, input_precision="ieee") * (1.0 / tl.sum(p, axis, keep_dims=True))


@triton.jit
def _window_of_16(
    query, q, v, top, left, H, W,
    BQ: tl.constexpr, DS: tl.constexpr, DP: tl.constexpr, KEYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, DP)[None, :]
    key = tl.arange(0, KEYS)
    column = _around(left + key % 16, W)
    highest = tl.full((BQ, 1), -float("inf"), tl.float32)
    total = tl.zeros((BQ, 1), tl.float32)
    y = tl.zeros((BQ, DP), tl.float32)
    for first in tl.range(0, 256, KEYS, num_stages=AHEAD):
        pixel = (_around(top + (first + key) // 16, H) * W + column)[:, None]
        s = tl.dot(query, tl.trans(_rows(q, pixel, d, DS, DP)), input_precision="ieee")
        higher = tl.maximum(highest, tl.max(s, 1, keep_dims=True))
        p = tl.exp2(s - higher)
        keep = tl.exp2(highest - higher)
        total = total * keep + tl.sum(p, 1, keep_dims=True)
        y = tl.dot(p.to(v.dtype.element_ty), _rows(v, pixel, d, DS, DP), y * keep, input_precision="ieee")
        highest = higher
    return y * (1.0 / total)


@triton.jit
def _squares(
    query, q, v, top, left, H, W, MASKED: tl.constexpr, SQUARES: tl.constexpr, DS: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    """Attend each square's queries to 8 x 8 keys from its (top, left) on; MASKED: in windows of 4 cornered there."""
    d = tl.arange(0, DP)[None, None, :]
    key = tl.arange(0, 64)[None, :]
    pixel = (_around(top + key // 8, H) * W + _around(left + key % 8, W))[:, :, None]
    keys = tl.permute(_rows(q, pixel, d, DS, DP), (0, 2, 1))
    s = tl.dot(tl.reshape(query, (SQUARES, 16, DP)), keys, input_precision="ieee")
    if MASKED:
        mine = tl.arange(0, 16)[:, None]
        same = ((mine // 4 + 2) // 4 == key // 32) & ((mine % 4 + 2) // 4 == key % 8 // 4)
        s = tl.where(same[None, :, :], s, -float("inf"))
    return tl.reshape(_attend(s, _rows(v, pixel, d, DS, DP), 2), (SQUARES * 16, DP))


@triton.jit(do_not_specialize=["H", "W"])
def window_attention_kernel(
    q, v, x, extra, w, b, out, H, W,
    CHUNKS: tl.constexpr, DS: tl.constexpr, DP: tl.constexpr, ROLLED: tl.constexpr, ADD: tl.constexpr,
    QUADS: tl.constexpr, KEYS: tl.constexpr, AHEAD: tl.constexpr, AHEAD_OUT: tl.constexpr,
):  # fmt: skip
    CS: tl.constexpr = 64 * CHUNKS
    BQ: tl.constexpr = 64 * QUADS
    T = x.dtype.element_ty
    program = tl.program_id(0) * QUADS  # those of a window follow one another
    across = W // 16
    window = program // 4
    n = window // (across * (H // 16))
    roll: tl.constexpr = 8 if ROLLED else 0
    window_top = window // across % (H // 16) * 16 + roll
    window_left = window % across * 16 + roll
    top = _around(window_top + program % 4 // 2 * 8, H)
    left = window_left + program % 2 * 8

    t = tl.arange(0, BQ)
    square = tl.arange(0, 4 * QUADS)[:, None]
    row = t % 64 // 32 * 4 + t % 16 // 4
    column = left + t // 64 * 8 + t // 16 % 2 * 4 + t % 4
    square_top = top + square % 4 // 2 * 4
    square_left = left + square // 4 * 8 + square % 2 * 4
    if ROLLED:  # quads on either side of the picture's edge
        column = _around(column, W)
        square_left = _around(square_left, W)
    pixel = ((top + row) * W + column)[:, None]
    d = tl.arange(0, DP)[None, :]
    image = n.to(tl.int64) * H * W * (3 * DS)
    q += image
    v += image

    query4 = _rows(q, pixel, d, DS, DP)
    query8 = _rows(q + DS, pixel, d, DS, DP)
    if ROLLED:
        y4 = _squares(query4, q, v, square_top - 2, square_left - 2, H, W, True, 4 * QUADS, DS, DP).to(T)
        corner = square_top - 4 + square % 4 // 2 * 4, square_left - 4 + square % 2 * 4
        y8 = _squares(query8, q + DS, v + DS, corner[0], corner[1], H, W, False, 4 * QUADS, DS, DP).to(T)
    else:
        query4 = tl.reshape(query4, (4 * QUADS, 16, DP))
        s = tl.dot(query4, tl.permute(query4, (0, 2, 1)), input_precision="ieee")
        value = tl.reshape(_rows(v, pixel, d, DS, DP), (4 * QUADS, 16, DP))
        y4 = tl.reshape(_attend(s, value, 2), (BQ, DP)).to(T)
        s = tl.dot(query8, tl.trans(query8), input_precision="ieee")
        if QUADS > 1:
            s = tl.where(t[:, None] // 64 == t[None, :] // 64, s, -float("inf"))
        y8 = _attend(s, _rows(v + DS, pixel, d, DS, DP), 1).to(T)
    query16 = _rows(q + 2 * DS, pixel, d, DS, DP)
    y16 = _window_of_16(
        query16, q + 2 * DS, v + 2 * DS, window_top, window_left, H, W, BQ, DS, DP, KEYS, AHEAD
    ).to(T)

    k = tl.arange(0, 64)
    part = tl.arange(0, DP)[:, None] * CS + k[None, :]
    start = ((n * (H + 4) + top + 2).to(tl.int64) * (W + 4) + 2) * CS
    at = start + ((row * (W + 4) + column) * CS)[:, None] + k[None, :]
    for first in tl.range(0, CS, 64, num_stages=AHEAD_OUT):
        acc = tl.dot(y4, tl.load(w + first + part), input_precision="ieee")
        acc = tl.dot(y8, tl.load(w + DP * CS + first + part), acc, input_precision="ieee")
        acc = tl.dot(y16, tl.load(w + 2 * DP * CS + first + part), acc, input_precision="ieee")
        acc += tl.load(b + first + k)[None, :] + tl.load(x + first + at).to(tl.float32)
        if ADD:
            acc += tl.load(extra + first + at).to(tl.float32)
        tl.store(out + first + at, acc.to(T))


def tiling(channels: int) -> dict[str, int]:
    """Return QUADS (of 8 x 8 pixels) for one program, KEYS of a window of 16 in one step, and warps.

    AHEAD, AHEAD_OUT: stages of the loops over keys and over columns of the output projection. `channels` as stored.
    """
    return {"QUADS": 1, "KEYS": 64, "AHEAD": 1 if channels == 64 else 2, "AHEAD_OUT": 1, "warps": 4}


def launch(
    q: Tensor,
    v: Tensor,
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    out: Tensor,
    channels: int,
    rolled: bool,
    extra: Tensor | None = None,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; arguments as in reference.window_attention. `out` may be `x`."""
    n, h, w, part = v.shape
    part //= 3
    check_windows(h, w)
    if h * w * 3 * part >= 1 << 31:
        raise ValueError(f"{h} x {w} pixels are more than 32-bit indices reach")
    stored, width = x.shape[3], weights[0].shape[1]
    chosen = {**tiling(stored), **overrides}
    pixels = n * h * w
    return triton_launch(
        window_attention_kernel,
        {
            "q": q,
            "v": v,
            "x": x,
            "extra": x if extra is None else extra,
            "w": weights[0],
            "b": weights[1],
            "out": out,
        },
        {"H": h, "W": w},
        {
            "CHUNKS": stored // 64,
            "DS": part,
            "DP": width,
            "ROLLED": rolled,
            "ADD": extra is not None,
            **chosen,
        },
        (pixels // (64 * chosen["QUADS"]),),
        flops=2 * pixels * channels * (channels + 2 * sum(s * s for s in WINDOWS) // 3),
        moved=pixels * channels * x.element_size() * (4 + (extra is not None)),
        label=label,
    )
