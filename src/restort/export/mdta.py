"""A Restormer's multi-Dconv head transposed attention (MDTA), from (q, k, v) to the projected result.

Source: Zamir et al., CVPR 2022, section 3.1: softmax(q k^T temperature) v over channels, q and k of unit norm over
all pixels, then a 1x1 projection. Norms, product and softmax are float32 in every graph.

The three functions `before`, `rows` and `gram` compute the same values in different nodes; restort.export.form says
which tool needs which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restort.export.graph import Array, GraphBuilder

ZERO_NORM = 1e-20  # added to the norms of q and k, in float32, so that an all-zero channel gives 0, not 0 / 0
APART = 200.0  # how far the scores of channels in different heads lie below all others, before the softmax


@dataclass(frozen=True)
class Attention:
    """The parameters of one block: temperature (heads,), projection (C, C, 1, 1), its bias (C,) or None."""

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
    """Divide q and k by their norms before their product, which keeps the graph small.

    y is (N, 3C, H, W); `shape` names the vector (N, C, H, W).
    """
    heads, width = a.heads, a.channels // a.heads
    if g.precision != "fp32":
        return g.conv(_before_in_float32(g, y, shape, a), a.projection, a.bias)
    y = g.op("Reshape", y, g.integers([0, 3 * heads, width, -1]))
    y = g.op("Div", y, _divisor(g, g.reduce("ReduceL2", y, 3), a.temperature))
    q, k, v = g.split(y, [heads] * 3, axis=1)
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    if heads == 1 and a.bias is None:
        scores = g.op("MatMul", g.weight(a.projection[:, :, 0, 0]), scores)
        return g.op("Reshape", g.op("MatMul", scores, v), shape)
    return g.conv(g.op("Reshape", g.op("MatMul", scores, v), shape), a.projection, a.bias)


def _before_in_float32(g: GraphBuilder, y: str, shape: str, a: Attention) -> str:
    """`before` in float32 between two casts. Einsum saves nodes and costs nothing where fp16 runs fast."""
    heads, c = a.heads, a.channels
    if heads == 1:  # Einsum contracts H and W as they are
        y = g.to_float32(y)
        y = g.op("Div", y, _divisor(g, g.reduce("ReduceL2", y, 2, 3), np.repeat(a.temperature, c)))
        q, k, v = g.split(y, [c] * 3, axis=1)
        scores = g.op("Softmax", g.op("Einsum", q, k, equation="nchw,ndhw->ncd"), axis=-1)
        return g.from_float32(g.op("Einsum", scores, v, equation="ncd,ndhw->nchw"))
    y = g.to_float32(g.op("Reshape", y, g.integers([0, 3 * heads, c // heads, -1])))
    y = g.op("Div", y, _divisor(g, g.reduce("ReduceL2", y, 3), a.temperature))
    q, k, v = g.split(y, [heads] * 3, axis=1)
    scores = g.op("Softmax", g.op("Einsum", q, k, equation="nhcp,nhdp->nhcd"), axis=-1)
    return g.from_float32(g.op("Reshape", g.op("MatMul", scores, v), shape))


def _divisor(g: GraphBuilder, norms: str, temperature: Array) -> str:
    """What divides (q, k, v), stacked along axis 1: (|q| / temperature, |k|, 1), as one affine map of the norms."""
    n = len(temperature)
    scale = np.concatenate([1 / _nonzero(temperature), np.ones(n), np.zeros(n)])
    offset = np.concatenate([np.full(2 * n, ZERO_NORM), np.ones(n)])
    zero, one = np.zeros(3 * n), np.ones(3 * n)
    affine = [g.weight(values, float32=True) for values in (scale, offset, zero, one)]
    return g.op("BatchNormalization", norms, *affine, epsilon=0.0)


def _nonzero(temperature: Array) -> Array:
    """The temperature, which divides a norm, with values near 0 replaced by 1e-30."""
    values: Array = np.where(np.abs(temperature) < 1e-30, 1e-30, temperature.astype(np.float64))
    return values


def gram(g: GraphBuilder, qk: str, v: str, shape: str, a: Attention, parts: int) -> str:
    """Multiply q and k of a head, stacked, with themselves, then divide the product by the norms.

    qk is (N, 2C, H, W): q and k of the first head, then of the next (`stacked`). v is (N, C, H, W), of the vector
    `shape`. The diagonal of the product holds the squares of the norms, so qk is read only once.

    The sum over all pixels is taken in `parts` equal parts (the number of pixels must be a multiple): a product of few
    rows and columns and a long sum occupies only as much of a GPU as it has parts. The blocks of q with q and of k
    with k stay in the product and are multiplied by 0: TensorRT's parser makes up to 25 layers of a Slice that would
    cut them off.
    """
    heads, c = a.heads, a.channels
    half = c // heads
    both = 2 * half
    qk = g.to_float32(qk)
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
    # Norms from the diagonal, (N, heads, both, 1).
    squares = g.op("Mul", product, g.weight(np.eye(both)[None, None], float32=True))
    norms = g.op("Sqrt", g.op("ReduceSum", squares, g.integers([3]), keepdims=1))
    norms = g.op("Add", norms, g.weight(np.full((1, 1, 1, 1), ZERO_NORM), float32=True))
    product = g.op("Div", g.op("Div", product, norms), g.op("Transpose", norms, perm=[0, 1, 3, 2]))
    product = g.op("Mul", product, g.weight(a.temperature.reshape(1, heads, 1, 1), float32=True))
    # The softmax must see columns of k alone: those of q get a score far below all others.
    apart = 2 * np.abs(a.temperature).max() + APART
    columns = np.where(np.arange(both) < half, -apart, 0.0)
    scores = g.op("Softmax", g.op("Add", product, g.weight(columns[None, None, None], float32=True)), axis=-1)
    rows = np.concatenate([_by_head(a), np.zeros((heads, c, half))], axis=2)[None]  # rows of k are times 0
    matrix = g.op("MatMul", g.weight(rows, float32=True), scores)
    keys = np.concatenate([np.zeros((half, half)), np.eye(half)])
    return _apply(g, g.op("MatMul", matrix, g.weight(keys[None, None], float32=True)), v, shape, a)


def _by_head(a: Attention) -> Array:
    """The projection as (heads, C, C / heads)."""
    split: Array = a.projection.reshape(a.channels, a.heads, -1).transpose(1, 0, 2)
    return split


def _apply(g: GraphBuilder, matrix: str, v: str, shape: str, a: Attention) -> str:
    """Multiply v (N, C, H, W), of the vector `shape`, by the matrix of all heads (N, heads, C, C / heads).

    The matrix holds the projection as well as the scores.
    """
    heads, c = a.heads, a.channels
    if heads > 1:
        matrix = g.op("Transpose", matrix, perm=[0, 2, 1, 3])
    v = g.op("Reshape", v, g.integers([0, c, -1]))
    y = g.op("MatMul", g.from_float32(g.op("Reshape", matrix, g.integers([0, c, c]))), v)
    y = y if a.bias is None else g.op("Add", y, g.weight(a.bias[:, None]))
    return g.op("Reshape", y, shape)


def stacked(channels: int, heads: int) -> Array:
    """The order of the channels of q and k that `gram` takes, as indices into (q, k)."""
    order: Array = np.arange(2 * channels).reshape(2, heads, -1).transpose(1, 0, 2).reshape(-1)
    return order


def rows(g: GraphBuilder, y: str, shape: str, a: Attention) -> str:
    """Compute all heads in one product of pixels as rows, heads separated by a mask before the softmax.

    y is (N, 3C, H, W); `shape` names the vector (N, H, W, C). The norms divide the product, and the projection is
    multiplied into the attention matrix.
    """
    heads, c = a.heads, a.channels
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 3, 1]), g.integers([0, -1, 3 * c]))
    qk, v = g.split(y, [2 * c, c], axis=2)
    qk = g.to_float32(qk)
    nq, nk = g.split(g.reduce("ReduceL2", qk, 1), [c] * 2, axis=2)  # (N, 1, C)
    q, k = g.split(qk, [c] * 2, axis=2)
    product = g.op("MatMul", g.op("Transpose", q, perm=[0, 2, 1]), k)
    nq = g.op("Transpose", nq, perm=[0, 2, 1])
    zero = g.weight(np.array(ZERO_NORM), float32=True)
    for norm in (nq, nk):
        product = g.op("Div", product, g.op("Add", norm, zero))
    temperature = np.repeat(a.temperature, c // heads).reshape(1, c, 1)
    product = g.op("Mul", product, g.weight(temperature, float32=True))
    if heads > 1:
        same_head = np.kron(np.eye(heads), np.ones((c // heads, c // heads)))
        # Scores are cosines times temperature. A mask no larger than needed also fits into float16.
        apart = 2 * np.abs(a.temperature).max() + APART
        product = g.op("Add", product, g.weight(np.where(same_head[None], 0.0, -apart), float32=True))
    scores = g.op("Softmax", product, axis=-1)
    matrix = g.from_float32(g.op("MatMul", g.weight(a.projection[None, :, :, 0, 0], float32=True), scores))
    y = g.op("MatMul", v, g.op("Transpose", matrix, perm=[0, 2, 1]))
    y = y if a.bias is None else g.op("Add", y, g.weight(a.bias))
    return g.op("Transpose", g.op("Reshape", y, shape), perm=[0, 3, 1, 2])
