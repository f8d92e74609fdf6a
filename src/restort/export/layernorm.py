"""LayerNorm over the channels of a Restormer, before a 1x1 convolution, in the nodes of restort.export.form.

Source: Zamir et al., CVPR 2022, section 3.1: the norm of each pixel's channels, with or without centring and bias.
"""

from __future__ import annotations

import numpy as np

from restort.export.form import Norm
from restort.export.graph import Array, GraphBuilder

EPSILON = 1e-5


def normed(
    g: GraphBuilder,
    x: str,
    scale: Array,
    shift: Array | None,
    weight: Array,
    bias: Array | None,
    form: Norm,
) -> tuple[str, Array, Array | None]:
    """Normalise x (N, C, H, W); return (value, weight, bias), the latter for the 1x1 convolution that follows.

    scale, shift    (C,), of the norm; shift None for BiasFree, which divides x by its deviation without centring it.
    weight, bias    (C', C, 1, 1) and (C',) or None, of the convolution as the network has it. What of the norm is
                    linear moves into them.

    Statistics are float32 in every graph.
    """
    if form in ("layer", "cast") and shift is not None:
        return _layer(g, x, scale, shift, float32=form == "cast"), weight, bias
    if form in ("cast", "arithmetic") or g.precision != "fp32":  # a float32 convolution is expensive there
        y = _arithmetic(g, x, centred=shift is not None)
        centring: Array | None = None
    else:
        y, centring = _convolution(g, x, len(scale)), np.eye(len(scale)) - 1 / len(scale)
    # The scale, the shift and a centring that the value lacks are linear and move into the convolution.
    matrix = weight[:, :, 0, 0].astype(np.float64) * scale
    if shift is not None:
        moved = weight[:, :, 0, 0].astype(np.float64) @ shift
        bias = moved if bias is None else bias + moved
        matrix = matrix if centring is None else matrix @ centring
    return y, matrix[:, :, None, None], bias


def _layer(g: GraphBuilder, x: str, scale: Array, shift: Array, float32: bool) -> str:
    y = g.op("Transpose", x, perm=[0, 2, 3, 1])
    y = g.to_float32(y) if float32 else y
    parts = g.weight(scale, float32), g.weight(shift, float32)
    # stash_type 1: statistics in float32, whatever the type of x
    y = g.op("LayerNormalization", y, *parts, axis=-1, epsilon=EPSILON, stash_type=1)
    y = g.from_float32(y) if float32 else y
    return g.op("Transpose", y, perm=[0, 3, 1, 2])


def _arithmetic(g: GraphBuilder, x: str, centred: bool) -> str:
    x = g.to_float32(x)
    difference = g.op("Sub", x, g.reduce("ReduceMean", x, 1))
    variance = g.reduce("ReduceMean", g.op("Mul", difference, difference), 1)
    deviation = g.op("Sqrt", g.op("Add", variance, g.weight(np.full((1, 1, 1, 1), EPSILON), float32=True)))
    return g.from_float32(g.op("Div", difference if centred else x, deviation))


def _convolution(g: GraphBuilder, x: str, c: int) -> str:
    """Divide x by sqrt(var + epsilon), without centring it; a 1x1 convolution gives the variance.

    The convolution centres the channels, divides them by sqrt(C) and appends the constant sqrt(epsilon): the L2 norm
    of its result over the channels is sqrt(var + epsilon).
    """
    statistics = np.concatenate([(np.eye(c) - 1 / c) / np.sqrt(c), np.zeros((1, c))])[:, :, None, None]
    constant = np.append(np.zeros(c), np.sqrt(EPSILON))
    x = g.to_float32(x)
    deviation = g.reduce("ReduceL2", g.conv(x, statistics, constant, float32=True), 1)
    return g.from_float32(g.op("Div", x, deviation))
