"""The kernel in Triton.

The second shift reads the hidden channels of group g at pixel p + d(g), and those are a product of input channels of
group k at p + d(g) + d(k). So a program takes its own pixels only: for each g it gathers the input once, columns of
group k from where they point, and nothing is computed twice, kept in memory or exchanged. The two rows and columns of
zeros around the input make every such read valid; hidden values outside of the image are set to zero.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch, check_windows, triton_launch

Tensor = Any

BORDER = 2


@triton.jit
def _columns(first, C: tl.constexpr, CS: tl.constexpr, across):
    """Offsets of 64 columns of the input from the pixel: the shift of their group and their place."""
    c = first + tl.arange(0, 64)
    group: tl.constexpr = C // 5
    move = tl.where(c < 4 * group, -across, 0)
    move = tl.where(c < 3 * group, across, move)
    move = tl.where(c < 2 * group, -1, move)
    move = tl.where(c < group, 1, move)
    return move * CS + c


@triton.jit
def _hidden(
    a0, a1, a2, w, b, first, inside, CHUNKS: tl.constexpr, CS: tl.constexpr, HP: tl.constexpr, N: tl.constexpr
):
    """relu(a @ w + b) of N hidden channels, zero outside of the image."""
    n = first + tl.arange(0, N)
    k = tl.arange(0, 64)
    at = w + k[:, None] * HP + n[None, :]
    h = tl.dot(a0, tl.load(at), input_precision="ieee")
    if CHUNKS > 1:
        h = tl.dot(a1, tl.load(at + 64 * HP), h, input_precision="ieee")
    if CHUNKS > 2:
        h = tl.dot(a2, tl.load(at + 128 * HP), h, input_precision="ieee")
    h = tl.maximum(h + tl.load(b + n)[None, :], 0.0)
    return tl.where(inside[:, None], h, 0.0).to(a0.dtype)


@triton.jit
def _project(
    x0, x1, x2, w, b, out, pixel,
    CHUNKS: tl.constexpr, CS: tl.constexpr, DS: tl.constexpr, DP: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Project to three parts of DS columns each, in rows of 3 * DS."""
    d = tl.arange(0, DP)
    at = w + tl.arange(0, 64)[:, None] * DP + d[None, :]
    to = out + pixel[:, None] * (3 * DS) + d[None, :]
    for part in tl.range(0, 3, num_stages=AHEAD):
        y = tl.dot(x0, tl.load(at + part * (CS * DP)), input_precision="ieee")
        if CHUNKS > 1:
            y = tl.dot(x1, tl.load(at + part * (CS * DP) + 64 * DP), y, input_precision="ieee")
        if CHUNKS > 2:
            y = tl.dot(x2, tl.load(at + part * (CS * DP) + 128 * DP), y, input_precision="ieee")
        y += tl.load(b + part * DP + d)[None, :]
        if DS == DP:
            tl.store(to + part * DS, y.to(out.dtype.element_ty))
        else:
            tl.store(to + part * DS, y.to(out.dtype.element_ty), mask=(d < DS)[None, :])


@triton.jit(do_not_specialize=["H", "W"])
def lfe_kernel(
    x, w0, b0, w1, b1, wv, bv, wq, bq, out, v, q, H, W,
    C: tl.constexpr, CHUNKS: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr,
    DS: tl.constexpr, DP: tl.constexpr, HAS_Q: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    CS: tl.constexpr = 64 * CHUNKS
    HP: tl.constexpr = HA + HB
    BP: tl.constexpr = TH * TW
    T = x.dtype.element_ty
    tile = tl.program_id(0)
    tiles_across = W // TW
    tiles_down = H // TH
    left = tile % tiles_across * TW
    top = tile // tiles_across % tiles_down * TH
    n = tile // (tiles_across * tiles_down)
    pitch = W + 4

    p = tl.arange(0, BP)
    row = p // TW
    column = p % TW
    start = ((n * (H + 4) + top + 2).to(tl.int64) * pitch + left + 2) * CS
    rows = (row * pitch + column) * CS
    here = rows[:, None] + tl.arange(0, 64)[None, :]
    k = tl.arange(0, 64)
    gather0 = rows[:, None] + _columns(0, C, CS, pitch)[None, :]
    gather1 = gather0
    gather2 = gather0
    if CHUNKS > 1:
        gather1 = rows[:, None] + _columns(64, C, CS, pitch)[None, :]
    if CHUNKS > 2:
        gather2 = rows[:, None] + _columns(128, C, CS, pitch)[None, :]

    acc0 = tl.zeros((BP, 64), tl.float32)
    acc1 = acc0
    acc2 = acc0
    for g in range(5):
        dy = tl.where(g == 2, 1, tl.where(g == 3, -1, 0))
        dx = tl.where(g == 0, 1, tl.where(g == 1, -1, 0))
        base = x + start + (dy * pitch + dx) * CS
        y = top + row + dy
        z = left + column + dx
        inside = (y >= 0) & (y < H) & (z >= 0) & (z < W)
        a0 = tl.load(base + gather0)
        a1 = a0
        a2 = a0
        if CHUNKS > 1:
            a1 = tl.load(base + gather1)
        if CHUNKS > 2:
            a2 = tl.load(base + gather2)
        w0_g = w0 + g * (CS * HP)
        w1_g = w1 + g * (CS * HP)
        b0_g = b0 + g * HP
        h = _hidden(a0, a1, a2, w0_g, b0_g, 0, inside, CHUNKS, CS, HP, HA)
        at = w1_g + tl.arange(0, HA)[:, None] * CS + k[None, :]
        acc0 = tl.dot(h, tl.load(at), acc0, input_precision="ieee")
        if CHUNKS > 1:
            acc1 = tl.dot(h, tl.load(at + 64), acc1, input_precision="ieee")
        if CHUNKS > 2:
            acc2 = tl.dot(h, tl.load(at + 128), acc2, input_precision="ieee")
        if HB > 0:
            h = _hidden(a0, a1, a2, w0_g, b0_g, HA, inside, CHUNKS, CS, HP, HB)
            at = w1_g + (HA + tl.arange(0, HB))[:, None] * CS + k[None, :]
            acc0 = tl.dot(h, tl.load(at), acc0, input_precision="ieee")
            if CHUNKS > 1:
                acc1 = tl.dot(h, tl.load(at + 64), acc1, input_precision="ieee")
            if CHUNKS > 2:
                acc2 = tl.dot(h, tl.load(at + 128), acc2, input_precision="ieee")

    x0 = (acc0 + tl.load(b1 + k)[None, :] + tl.load(x + start + here).to(tl.float32)).to(T)
    tl.store(out + start + here, x0)
    x1 = x0
    x2 = x0
    if CHUNKS > 1:
        x1 = (acc1 + tl.load(b1 + 64 + k)[None, :] + tl.load(x + start + 64 + here).to(tl.float32)).to(T)
        tl.store(out + start + 64 + here, x1)
    if CHUNKS > 2:
        x2 = (acc2 + tl.load(b1 + 128 + k)[None, :] + tl.load(x + start + 128 + here).to(tl.float32)).to(T)
        tl.store(out + start + 128 + here, x2)

    pixels = ((n * H + top).to(tl.int64) * W + left) * (3 * DS)
    pixel = row * W + column
    _project(x0, x1, x2, wv, bv, v + pixels, pixel, CHUNKS, CS, DS, DP, AHEAD)
    if HAS_Q:
        _project(x0, x1, x2, wq, bq, q + pixels, pixel, CHUNKS, CS, DS, DP, AHEAD)


def tiling(channels: int, capability: int) -> dict[str, int]:
    """Return TH x TW pixels of a program, warps and stages of the groups' loop.

    AHEAD: stages of the projections' loop. `channels` as stored.
    """
    if channels == 64:
        return {"TH": 4, "TW": 16, "AHEAD": 2, "warps": 4, "stages": 2}
    if capability in (90, 100):
        return {"TH": 8, "TW": 16, "AHEAD": 2, "warps": 8, "stages": 2}
    return {"TH": 4, "TW": 16, "AHEAD": 1, "warps": 4, "stages": 1}


def launch(
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor] | None,
    out: Tensor,
    v: Tensor,
    q: Tensor,
    channels: int,
    capability: int = 90,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; arguments as in reference.lfe. `q` is written if `queries` are given. `out` must not be `x`."""
    n, h, w, stored = x.shape
    h, w = h - 2 * BORDER, w - 2 * BORDER
    w0, b0, w1, b1 = weights
    hidden = w0.shape[2]
    first = 1 << (hidden.bit_length() - 1)
    chosen = {**tiling(stored, capability), **overrides}
    check_windows(h, w)
    part, width = v.shape[3] // 3, values[1].shape[1]
    wq, bq = queries or values
    parts = 6 if queries else 3
    pixels, hiddens, size = n * h * w, 2 * channels, x.element_size()
    tensors = {"x": x, "w0": w0, "b0": b0, "w1": w1, "b1": b1, "wv": values[0], "bv": values[1]}
    return triton_launch(
        lfe_kernel,
        tensors | {"wq": wq, "bq": bq, "out": out, "v": v, "q": q},
        {"H": h, "W": w},
        {
            "C": channels,
            "CHUNKS": stored // 64,
            "HA": first,
            "HB": hidden - first,
            "DS": part,
            "DP": width,
            "HAS_Q": queries is not None,
            **chosen,
        },
        (n * (h // chosen["TH"]) * (w // chosen["TW"]),),
        flops=2 * pixels * channels * (2 * hiddens + parts * (channels // 3)),
        moved=pixels * size * (2 * channels + parts * (channels // 3)),
        label=label,
    )
