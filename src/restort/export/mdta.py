"""A Restormer's multi-Dconv head transposed attention (MDTA), from (q, k, v) to the projected result.

Source: Zamir et al., CVPR 2022, section 3.1: softmax(q k^T temperature) v over channels, q and k of unit norm over
all pixels, then a 1x1 projection. Norms, product and softmax are float32 in every graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restort.export.graph import Array, GraphBuilder

ZERO_NORM = (
    1e-20  # added to the norms of q and k, in float32, so that an all-zero channel gives 0 and not 0 / 0
)
LENGTH = 16.0  # of q and k where they are multiplied in float16: 256 is far from its limit, 16 / 960 from the other
APART = 200.0  # how far below all others the scores of channels in different heads are, before the softmax


@dataclass(frozen=True)
class Attention:
    """One block's numbers: temperature (heads,), projection (C, C, 1, 1) with its bias (C,) or None."""

    temperature: Array
    projection: Array
    bias: Array | None

    @property
    def heads(self) -> int:
        return len(self.temperature)

    @property
    def channels(self) -> int:
        return len(self.projection)


def before(g: GraphBuilder, y: str, shape: str, a: Attention) -> str:
    """y (N, 3C, H, W); `shape` the vector (N, C, H, W). The norms divide q and k, which keeps the graph small."""
    heads, width = a.heads, a.channels // a.heads
    if g.precision != "fp32":
        return g.conv(_before_wide(g, y, shape, a), a.projection, a.bias)
    y = g.op("Reshape", y, g.integers([0, 3 * heads, width, -1]))
    y = g.op("Div", y, _divisor(g, g.reduce("ReduceL2", y, 3), a.temperature))
    q, k, v = g.split(y, [heads] * 3, axis=1)
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    if heads == 1 and a.bias is None:
        scores = g.op("MatMul", g.weight(a.projection[:, :, 0, 0]), scores)
        return g.op("Reshape", g.op("MatMul", scores, v), shape)
    return g.conv(g.op("Reshape", g.op("MatMul", scores, v), shape), a.projection, a.bias)


def _before_wide(g: GraphBuilder, y: str, shape: str, a: Attention) -> str:
    """The same in float32 between two casts; Einsum saves nodes, and costs nothing where fp16 runs fast."""
    heads, c = a.heads, a.channels
    if heads == 1:  # Einsum contracts H and W as they are
        y = g.widen(y)
        y = g.op("Div", y, _divisor(g, g.reduce("ReduceL2", y, 2, 3), np.repeat(a.temperature, c)))
        q, k, v = g.split(y, [c] * 3, axis=1)
        scores = g.op("Softmax", g.op("Einsum", q, k, equation="nchw,ndhw->ncd"), axis=-1)
        return g.narrow(g.op("Einsum", scores, v, equation="ncd,ndhw->nchw"))
    y = g.widen(g.op("Reshape", y, g.integers([0, 3 * heads, c // heads, -1])))
    y = g.op("Div", y, _divisor(g, g.reduce("ReduceL2", y, 3), a.temperature))
    q, k, v = g.split(y, [heads] * 3, axis=1)
    scores = g.op("Softmax", g.op("Einsum", q, k, equation="nhcp,nhdp->nhcd"), axis=-1)
    return g.narrow(g.op("Reshape", g.op("MatMul", scores, v), shape))


def _divisor(g: GraphBuilder, norms: str, temperature: Array) -> str:
    """What divides (q, k, v), stacked along axis 1: (|q| / temperature, |k|, 1), as one affine map."""
    n = len(temperature)
    scale = np.concatenate([1 / _safe(temperature), np.ones(n), np.zeros(n)])
    offset = np.concatenate([np.full(2 * n, ZERO_NORM), np.ones(n)])
    zero, one = np.zeros(3 * n), np.ones(3 * n)
    affine = [g.weight(values, wide=True) for values in (scale, offset, zero, one)]
    return g.op("BatchNormalization", norms, *affine, epsilon=0.0)


def _safe(temperature: Array) -> Array:
    """It divides a norm, so it must not be 0."""
    values: Array = np.where(np.abs(temperature) < 1e-30, 1e-30, temperature.astype(np.float64))
    return values


def after(g: GraphBuilder, y: str, shape: str, a: Attention, *, fold: bool) -> str:
    """As `before`, but the norms divide the product; with `fold` the projection is multiplied into the matrix."""
    heads, c = a.heads, a.channels
    qk, v = g.split(y, [2 * c, c], axis=1)
    qk = g.widen(g.op("Reshape", qk, g.integers([0, 2 * heads, c // heads, -1])))
    nq, nk = g.split(g.reduce("ReduceL2", qk, 3), [heads] * 2, axis=1)  # (N, heads, C / heads, 1)
    q, k = g.split(qk, [heads] * 2, axis=1)
    product = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    nk = g.op("Transpose", nk, perm=[0, 1, 3, 2])
    scores = _softmax(g, product, nq, nk, a.temperature.reshape(1, heads, 1, 1))
    if not fold:
        v = g.op("Reshape", v, g.integers([0, heads, c // heads, -1]))
        attended = g.op("Reshape", g.op("MatMul", g.narrow(scores), v), shape)
        return g.conv(attended, a.projection, a.bias)
    matrix = g.op("MatMul", g.weight(_by_head(a)[None], wide=True), scores)
    return _applied(g, matrix, v, shape, a)


def unit(g: GraphBuilder, y: str, shape: str, a: Attention) -> str:
    """q and k, divided in float32, go back to the graph's type; of length LENGTH their products fit into float16."""
    heads, c = a.heads, a.channels
    qk, v = g.split(y, [2 * c, c], axis=1)
    qk = g.widen(g.op("Reshape", qk, g.integers([0, 2 * heads, c // heads, -1])))
    norms = g.op("Add", g.reduce("ReduceL2", qk, 3), g.weight(np.array(ZERO_NORM), wide=True))
    factor = g.op("Div", g.weight(np.array(LENGTH), wide=True), norms)
    q, k = g.split(g.narrow(g.op("Mul", qk, factor)), [heads] * 2, axis=1)
    product = g.widen(g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])))
    temperature = (a.temperature / LENGTH**2).reshape(1, heads, 1, 1)
    scores = g.op("Softmax", g.op("Mul", product, g.weight(temperature, wide=True)), axis=-1)
    v = g.op("Reshape", v, g.integers([0, heads, c // heads, -1]))
    attended = g.op("Reshape", g.op("MatMul", g.narrow(scores), v), shape)
    return g.conv(attended, a.projection, a.bias)


def gram(g: GraphBuilder, qk: str, v: str, shape: str, a: Attention, parts: int) -> str:
    """As `after`, from one product: q and k of a head, stacked, with themselves.

    qk (N, 2C, H, W) holds q and k of the first head, then of the next (`stacked`); v (N, C, H, W). The diagonal of the
    product has the squares of the norms, so that qk is read by nothing else. The sums over all pixels are those of
    `parts` equal parts, of which the pixels must be a multiple: a product of few rows and columns and a long sum keeps
    no more of a GPU busy than it has such parts. What is of q with q and of k with k stays where it is, multiplied by
    nothing: of a Slice that cuts it off, a TensorRT's reader of graphs may make 25 layers.
    """
    heads, c = a.heads, a.channels
    half = c // heads
    both = 2 * half
    qk = g.widen(qk)
    if parts > 1:
        qk = g.op("Reshape", qk, g.integers([0, 2 * c, parts, -1]))
        qk = g.op("Transpose", qk, perm=[0, 2, 1, 3])
    if parts == 1 or heads > 1:
        qk = g.op("Reshape", qk, g.integers([0, parts * heads, both, -1]))
    product = g.op("MatMul", qk, g.op("Transpose", qk, perm=[0, 1, 3, 2]))
    if parts > 1 and heads > 1:
        product = g.op("Reshape", product, g.integers([0, parts, heads * both, both]))
        product = g.op("ReduceSum", product, g.integers([1]), keepdims=0)
        product = g.op("Reshape", product, g.integers([0, heads, both, both]))
    elif parts > 1:
        product = g.op("ReduceSum", product, g.integers([1]), keepdims=1)
    squares = g.op("Mul", product, g.weight(np.eye(both)[None, None], wide=True))
    norms = g.op("Sqrt", g.op("ReduceSum", squares, g.integers([3]), keepdims=1))
    norms = g.op("Add", norms, g.weight(np.full((1, 1, 1, 1), ZERO_NORM), wide=True))
    product = g.op("Div", g.op("Div", product, norms), g.op("Transpose", norms, perm=[0, 1, 3, 2]))
    product = g.op("Mul", product, g.weight(a.temperature.reshape(1, heads, 1, 1), wide=True))
    apart = 2 * np.abs(a.temperature).max() + APART
    columns = np.where(np.arange(both) < half, -apart, 0.0)  # none of q
    scores = g.op("Softmax", g.op("Add", product, g.weight(columns[None, None, None], wide=True)), axis=-1)
    rows = np.concatenate([_by_head(a), np.zeros((heads, c, half))], axis=2)[None]  # those of k: times 0
    matrix = g.op("MatMul", g.weight(rows, wide=True), scores)
    keys = np.concatenate([np.zeros((half, half)), np.eye(half)])
    return _applied(g, g.op("MatMul", matrix, g.weight(keys[None, None], wide=True)), v, shape, a)


def _by_head(a: Attention) -> Array:
    """The projection as (heads, C, C / heads)."""
    split: Array = a.projection.reshape(a.channels, a.heads, -1).transpose(1, 0, 2)
    return split


def _applied(g: GraphBuilder, matrix: str, v: str, shape: str, a: Attention) -> str:
    """All heads' matrix (N, heads, C, C / heads), the projection in it, times v (N, C, H, W), of that `shape`."""
    heads, c = a.heads, a.channels
    if heads > 1:
        matrix = g.op("Transpose", matrix, perm=[0, 2, 1, 3])
    v = g.op("Reshape", v, g.integers([0, c, -1]))
    y = g.op("MatMul", g.narrow(g.op("Reshape", matrix, g.integers([0, c, c]))), v)
    y = y if a.bias is None else g.op("Add", y, g.weight(a.bias[:, None]))
    return g.op("Reshape", y, shape)


def stacked(channels: int, heads: int) -> Array:
    """The order of q's and k's channels that `gram` takes: where each stands in (q, k)."""
    order: Array = np.arange(2 * channels).reshape(2, heads, -1).transpose(1, 0, 2).reshape(-1)
    return order


def rows(g: GraphBuilder, y: str, shape: str, a: Attention, parts: int = 1) -> str:
    """As `after` with `fold`, but pixels are rows and a mask keeps the heads apart; `shape` is (N, H, W, C).

    The sums over all pixels are those of `parts` equal parts, of which the pixels must be a multiple.
    """
    heads, c = a.heads, a.channels
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 3, 1]), g.integers([0, -1, 3 * c]))
    qk, v = g.split(y, [2 * c, c], axis=2)
    qk = g.widen(qk)
    nq, nk = g.split(g.reduce("ReduceL2", qk, 1), [c] * 2, axis=2)  # (N, 1, C)
    if parts > 1:
        q, k = g.split(g.op("Reshape", qk, g.integers([0, parts, -1, 2 * c])), [c] * 2, axis=3)
        product = g.op("MatMul", g.op("Transpose", q, perm=[0, 1, 3, 2]), k)
        product = g.op("ReduceSum", product, g.integers([1]), keepdims=0)
    else:
        q, k = g.split(qk, [c] * 2, axis=2)
        product = g.op("MatMul", g.op("Transpose", q, perm=[0, 2, 1]), k)
    nq = g.op("Transpose", nq, perm=[0, 2, 1])
    temperature = np.repeat(a.temperature, c // heads).reshape(1, c, 1)
    together = np.kron(np.eye(heads), np.ones((c // heads, c // heads)))
    # Scores are cosines times temperature. No larger than it must be, the mask fits into float16, too.
    apart = 2 * np.abs(a.temperature).max() + APART
    mask = None if heads == 1 else np.where(together[None], 0.0, -apart)
    scores = _softmax(g, product, nq, nk, temperature, mask)
    matrix = g.narrow(g.op("MatMul", g.weight(a.projection[None, :, :, 0, 0], wide=True), scores))
    y = g.op("MatMul", v, g.op("Transpose", matrix, perm=[0, 2, 1]))
    y = y if a.bias is None else g.op("Add", y, g.weight(a.bias))
    return g.op("Transpose", g.op("Reshape", y, shape), perm=[0, 3, 1, 2])


def _softmax(
    g: GraphBuilder, product: str, nq: str, nk: str, temperature: Array, mask: Array | None = None
) -> str:
    """softmax(product temperature / (|q| |k|) + mask) in float32; nq a column, nk a row that fit the product."""
    zero = g.weight(np.array(ZERO_NORM), wide=True)
    for norm in (nq, nk):
        product = g.op("Div", product, g.op("Add", norm, zero))
    product = g.op("Mul", product, g.weight(temperature, wide=True))
    if mask is not None:
        product = g.op("Add", product, g.weight(mask, wide=True))
    return g.op("Softmax", product, axis=-1)
