"""Two operations that limit a training step, as Triton kernels with their gradients.

`depthwise3x3` is the zero-padded depthwise 3x3 convolution of Restormer in NCHW; `window_attention` is ELAN's
softmax(q q^T) v within windows, with windows and cyclic roll as index arithmetic, so that neither scores nor
rearranged copies are ever stored. Both are custom operators, which torch.compile leaves whole. They also run in
Triton's CPU interpreter (TRITON_INTERPRET=1), which is how the tests check them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 64  # pixels of a window (or of four 4x4 windows) that one program holds


@triton.jit
def _row(base, row, column, H: tl.constexpr, W: tl.constexpr, valid):
    """Three float32 copies of a row of each plane: shifted to the right, as it is, shifted to the left."""
    inside = (valid & (row >= 0) & (row < H)) != 0
    at = base + row * W + column
    left = tl.load(at - 1, mask=(inside & (column >= 1)) != 0, other=0.0).to(tl.float32)
    here = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(at + 1, mask=(inside & (column < W - 1)) != 0, other=0.0).to(tl.float32)
    return left, here, right


@triton.jit
def _depthwise(
    x, w, y, PLANES_IN_ALL, C, H: tl.constexpr, W: tl.constexpr,
    FLIP: tl.constexpr, ROWS: tl.constexpr, PLANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # A strip of rows, top to bottom: each input row is loaded once and adds to the three output rows it touches.
    plane = (tl.program_id(0) * PLANES + tl.arange(0, PLANES))[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    valid = (plane < PLANES_IN_ALL) & (column < W)
    base = plane.to(tl.int64) * (H * W)
    k = w + (plane % C) * 9 + (8 if FLIP else 0)
    s: tl.constexpr = -1 if FLIP else 1
    there = plane < PLANES_IN_ALL
    k0, k1, k2 = tl.load(k, mask=there), tl.load(k + s, mask=there), tl.load(k + 2 * s, mask=there)
    k3, k4, k5 = (
        tl.load(k + 3 * s, mask=there),
        tl.load(k + 4 * s, mask=there),
        tl.load(k + 5 * s, mask=there),
    )
    k6, k7, k8 = (
        tl.load(k + 6 * s, mask=there),
        tl.load(k + 7 * s, mask=there),
        tl.load(k + 8 * s, mask=there),
    )
    first = tl.program_id(1) * ROWS
    above = tl.zeros([PLANES, WIDTH], tl.float32)
    level = tl.zeros([PLANES, WIDTH], tl.float32)
    for i in range(ROWS + 2):
        row = first + i - 1
        a, b, c = _row(x + base, row, column, H, W, valid)
        done = above + k6 * a + k7 * b + k8 * c
        above = level + k3 * a + k4 * b + k5 * c
        level = k0 * a + k1 * b + k2 * c
        mask = (valid & (row > first) & (row - 1 < H)) != 0
        tl.store(y + base + (row - 1) * W + column, done.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _depthwise_weight(
    x, g, out, N, C, H: tl.constexpr, W: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    channel, split = tl.program_id(0), tl.program_id(1)
    strips: tl.constexpr = (H + ROWS - 1) // ROWS
    column = tl.arange(0, WIDTH)
    valid = column < W
    a0 = tl.zeros([WIDTH], tl.float32)
    a1 = tl.zeros([WIDTH], tl.float32)
    a2 = tl.zeros([WIDTH], tl.float32)
    a3 = tl.zeros([WIDTH], tl.float32)
    a4 = tl.zeros([WIDTH], tl.float32)
    a5 = tl.zeros([WIDTH], tl.float32)
    a6 = tl.zeros([WIDTH], tl.float32)
    a7 = tl.zeros([WIDTH], tl.float32)
    a8 = tl.zeros([WIDTH], tl.float32)
    for t in range(split, N * strips, SPLITS):
        base = ((t // strips) * C + channel).to(tl.int64) * (H * W)
        first = (t % strips) * ROWS
        before = tl.load(g + base + (first - 1) * W + column, mask=(valid & (first >= 1)) != 0, other=0.0).to(
            tl.float32
        )
        now = tl.load(g + base + first * W + column, mask=valid, other=0.0).to(tl.float32)
        for i in range(ROWS):
            row = first + i
            after_mask = (valid & (row + 1 < H)) != 0
            after = tl.load(g + base + (row + 1) * W + column, mask=after_mask, other=0.0).to(tl.float32)
            left, here, right = _row(x + base, row, column, H, W, valid)
            a0 += after * left
            a1 += after * here
            a2 += after * right
            a3 += now * left
            a4 += now * here
            a5 += now * right
            a6 += before * left
            a7 += before * here
            a8 += before * right
            before, now = now, after
    to = out + (split * C + channel) * 9
    tl.store(to, tl.sum(a0, 0))
    tl.store(to + 1, tl.sum(a1, 0))
    tl.store(to + 2, tl.sum(a2, 0))
    tl.store(to + 3, tl.sum(a3, 0))
    tl.store(to + 4, tl.sum(a4, 0))
    tl.store(to + 5, tl.sum(a5, 0))
    tl.store(to + 6, tl.sum(a6, 0))
    tl.store(to + 7, tl.sum(a7, 0))
    tl.store(to + 8, tl.sum(a8, 0))


ROWS = 16


def _run_depthwise(x: Tensor, weight: Tensor, flip: bool) -> Tensor:
    n, c, h, w = x.shape
    y = torch.empty_like(x)
    width = triton.next_power_of_2(w)
    planes = max(1, 256 // width)
    grid = (triton.cdiv(n * c, planes), triton.cdiv(h, ROWS))
    _depthwise[grid](
        x, weight, y, n * c, c, h, w, flip, ROWS, planes, width, num_warps=max(1, planes * width // 128)
    )
    return y


@torch.library.custom_op("restort_train::depthwise3x3", mutates_args=())
def depthwise3x3(x: Tensor, weight: Tensor) -> Tensor:
    """(N, C, H, W) and (C, 1, 3, 3) -> (N, C, H, W) in x's dtype; accumulates in float32."""
    return _run_depthwise(x.contiguous(), weight.contiguous(), False)


@depthwise3x3.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("restort_train::depthwise3x3_backward", mutates_args=())
def depthwise3x3_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    grad, x = grad.contiguous(), x.contiguous()
    n, c, h, w = x.shape
    dx = _run_depthwise(grad, weight.contiguous(), True)
    width = triton.next_power_of_2(w)
    splits = max(1, min(n * triton.cdiv(h, ROWS), triton.cdiv(8192, c)))
    parts = torch.empty(splits, c, 9, device=x.device, dtype=torch.float32)
    _depthwise_weight[(c, splits)](
        x, grad, parts, n, c, h, w, splits, ROWS, width, num_warps=max(1, width // 128)
    )
    return dx, parts.sum(0).view_as(weight).to(weight.dtype)


@depthwise3x3_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


def _depthwise_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _depthwise_grad(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    return depthwise3x3_backward(grad, *ctx.saved_tensors)


depthwise3x3.register_autograd(_depthwise_grad, setup_context=_depthwise_setup)


@triton.jit
def _pixels(tile, H, W, SIZE: tl.constexpr, OFFSET: tl.constexpr, TOKENS: tl.constexpr):
    """Where the tokens of a tile lie in the plane, and which window each belongs to."""
    t = tile * TOKENS + tl.arange(0, TOKENS)
    window = t // (SIZE * SIZE)
    inside = t % (SIZE * SIZE)
    across = W // SIZE
    row = (window // across * SIZE + inside // SIZE + OFFSET) % H
    column = (window % across * SIZE + inside % SIZE + OFFSET) % W
    return row * W + column, window, t < H * W


@triton.jit
def _load(base, pixel, d, valid, plane, D: tl.constexpr):
    return tl.load(
        base + d[None, :] * plane + pixel[:, None], mask=valid[:, None] & (d < D)[None, :], other=0.0
    )


@triton.jit
def _attend(
    q, v, y, lse, stride_q, stride_v, H, W,
    D: tl.constexpr, DP: tl.constexpr, SIZE: tl.constexpr, OFFSET: tl.constexpr,
    STEPS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    tile, n = tl.program_id(0), tl.program_id(1)
    plane = H * W
    d = tl.arange(0, DP)
    q_base, v_base = q + n.to(tl.int64) * stride_q, v + n.to(tl.int64) * stride_v
    pixel, window, valid = _pixels(tile, H, W, SIZE, OFFSET, TOKENS)
    mine = _load(q_base, pixel, d, valid, plane, D)
    top = tl.full([TOKENS], -float("inf"), tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    result = tl.zeros([TOKENS, DP], tl.float32)
    first = tile // STEPS * STEPS
    for j in range(STEPS):
        pixel_j, window_j, valid_j = _pixels(first + j, H, W, SIZE, OFFSET, TOKENS)
        theirs = _load(q_base, pixel_j, d, valid_j, plane, D)
        values = _load(v_base, pixel_j, d, valid_j, plane, D)
        scores = tl.dot(mine, tl.trans(theirs), input_precision="ieee")
        scores = tl.where((window[:, None] == window_j[None, :]) & valid_j[None, :], scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp(scores - higher[:, None])
        keep = tl.exp(top - higher)
        total = total * keep + tl.sum(p, 1)
        result = result * keep[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        top = higher
    result = result / total[:, None]
    out = y + n.to(tl.int64) * plane * D + d[None, :] * plane + pixel[:, None]
    tl.store(out, result.to(y.dtype.element_ty), mask=valid[:, None] & (d < D)[None, :])
    tl.store(lse + n.to(tl.int64) * plane + pixel, top + tl.log(total), mask=valid)


@triton.jit
def _attend_backward(
    q, v, y, lse, grad, dq, dv, stride_q, stride_v, H, W,
    D: tl.constexpr, DP: tl.constexpr, SIZE: tl.constexpr, OFFSET: tl.constexpr,
    STEPS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    # s = q q^T is symmetric, so one product gives both the rows (as query) and the columns (as key) of a block.
    tile, n = tl.program_id(0), tl.program_id(1)
    plane = H * W
    d = tl.arange(0, DP)
    q_base, v_base = q + n.to(tl.int64) * stride_q, v + n.to(tl.int64) * stride_v
    y_base, g_base = y + n.to(tl.int64) * plane * D, grad + n.to(tl.int64) * plane * D
    l_base = lse + n.to(tl.int64) * plane
    pixel, window, valid = _pixels(tile, H, W, SIZE, OFFSET, TOKENS)
    q_i, v_i = _load(q_base, pixel, d, valid, plane, D), _load(v_base, pixel, d, valid, plane, D)
    g_i, y_i = _load(g_base, pixel, d, valid, plane, D), _load(y_base, pixel, d, valid, plane, D)
    delta_i = tl.sum(g_i.to(tl.float32) * y_i.to(tl.float32), 1)
    lse_i = tl.load(l_base + pixel, mask=valid, other=0.0)
    dq_i = tl.zeros([TOKENS, DP], tl.float32)
    dv_i = tl.zeros([TOKENS, DP], tl.float32)
    first = tile // STEPS * STEPS
    for j in range(STEPS):
        pixel_j, window_j, valid_j = _pixels(first + j, H, W, SIZE, OFFSET, TOKENS)
        q_j, v_j = _load(q_base, pixel_j, d, valid_j, plane, D), _load(v_base, pixel_j, d, valid_j, plane, D)
        g_j, y_j = _load(g_base, pixel_j, d, valid_j, plane, D), _load(y_base, pixel_j, d, valid_j, plane, D)
        delta_j = tl.sum(g_j.to(tl.float32) * y_j.to(tl.float32), 1)
        lse_j = tl.load(l_base + pixel_j, mask=valid_j, other=0.0)
        same = (window[:, None] == window_j[None, :]) & valid[:, None] & valid_j[None, :]
        scores = tl.dot(q_i, tl.trans(q_j), input_precision="ieee")
        p = tl.where(same, tl.exp(scores - lse_i[:, None]), 0.0)
        p_t = tl.where(same, tl.exp(scores - lse_j[None, :]), 0.0)
        dv_i += tl.dot(p_t.to(g_j.dtype), g_j, input_precision="ieee")
        ds = p * (tl.dot(g_i, tl.trans(v_j), input_precision="ieee") - delta_i[:, None])
        ds += p_t * (tl.dot(v_i, tl.trans(g_j), input_precision="ieee") - delta_j[None, :])
        dq_i += tl.dot(ds.to(q_j.dtype), q_j, input_precision="ieee")
    where = n.to(tl.int64) * plane * D + d[None, :] * plane + pixel[:, None]
    mask = valid[:, None] & (d < D)[None, :]
    tl.store(dq + where, dq_i.to(dq.dtype.element_ty), mask=mask)
    tl.store(dv + where, dv_i.to(dv.dtype.element_ty), mask=mask)


def _planes(x: Tensor) -> Tensor:
    """x with contiguous (C, H, W); a slice of channels passes without a copy."""
    _, _, h, w = x.shape
    return x if x.stride()[1:] == (h * w, w, 1) else x.contiguous()


def _arguments(v: Tensor, size: int, rolled: bool) -> tuple[tuple[int, int], list[int]]:
    n, depth, h, w = v.shape
    steps = max(1, size * size // TOKENS)
    padded = max(16, triton.next_power_of_2(depth))
    offset = size // 2 if rolled else 0
    return (triton.cdiv(h * w, TOKENS), n), [h, w, depth, padded, size, offset, steps, TOKENS]


@torch.library.custom_op("restort_train::window_attention", mutates_args=())
def _window_attention(q: Tensor, v: Tensor, size: int, rolled: bool) -> tuple[Tensor, Tensor]:
    q, v = _planes(q), _planes(v)
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    lse = torch.empty(v.shape[0], v.shape[2], v.shape[3], dtype=torch.float32, device=v.device)
    grid, rest = _arguments(v, size, rolled)
    _attend[grid](q, v, y, lse, q.stride(0), v.stride(0), *rest)
    return y, lse


@_window_attention.register_fake
def _(q: Tensor, v: Tensor, size: int, rolled: bool) -> tuple[Tensor, Tensor]:
    n, _, h, w = v.shape
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    return y, torch.empty(n, h, w, dtype=torch.float32, device=v.device)


@torch.library.custom_op("restort_train::window_attention_backward", mutates_args=())
def _window_attention_backward(
    grad: Tensor, q: Tensor, v: Tensor, y: Tensor, lse: Tensor, size: int, rolled: bool
) -> tuple[Tensor, Tensor]:
    q, v, grad, y = _planes(q), _planes(v), grad.contiguous(), y.contiguous()
    dq, dv = torch.empty_like(y, dtype=q.dtype), torch.empty_like(y)
    grid, rest = _arguments(v, size, rolled)
    _attend_backward[grid](q, v, y, lse, grad, dq, dv, q.stride(0), v.stride(0), *rest)
    return dq, dv


@_window_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, v: Tensor, y: Tensor, lse: Tensor, size: int, rolled: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty(v.shape, dtype=q.dtype, device=q.device), torch.empty(
        v.shape, dtype=v.dtype, device=v.device
    )


def _attention_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, v, ctx.size, ctx.rolled = inputs
    ctx.save_for_backward(q, v, *output)


def _attention_grad(ctx, grad: Tensor, _):  # type: ignore[no-untyped-def]
    dq, dv = _window_attention_backward(grad, *ctx.saved_tensors, ctx.size, ctx.rolled)
    return dq, dv, None, None


_window_attention.register_autograd(_attention_grad, setup_context=_attention_setup)


def window_attention(q: Tensor, v: Tensor, size: int, rolled: bool) -> Tensor:
    """Compute restort.models.elan.window_attention, forward and backward, in one kernel each."""
    return _window_attention(q, v, size, rolled)[0]
