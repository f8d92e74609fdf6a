"""A Restormer's LayerNorm over the channels, in several ways of writing, before a 1x1 convolution.

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
    """LayerNorm of x (N, C, H, W), then what the 1x1 convolution after it has to be: (value, weight, bias).

    scale, shift (C,) of the norm, shift None for BiasFree, which divides x by its deviation without centring it;
    weight (C', C, 1, 1), bias (C',) or None of the convolution. Statistics are float32 in every graph.
    """
    if form in ("layer", "cast") and shift is not None:
        return _layer(g, x, scale, shift, wide=form == "cast"), weight, bias
    if form in ("cast", "arithmetic") or g.precision != "fp32":  # a float32 convolution would be dear there
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


def _layer(g: GraphBuilder, x: str, scale: Array, shift: Array, wide: bool) -> str:
    y = g.op("Transpose", x, perm=[0, 2, 3, 1])
    y = g.widen(y) if wide else y
    parts = g.weight(scale, wide), g.weight(shift, wide)
    # stash_type 1: the statistics are float32 whatever the type of x
    y = g.op("LayerNormalization", y, *parts, axis=-1, epsilon=EPSILON, stash_type=1)
    y = g.narrow(y) if wide else y
    return g.op("Transpose", y, perm=[0, 3, 1, 2])


def _arithmetic(g: GraphBuilder, x: str, centred: bool) -> str:
    wide = g.widen(x)
    difference = g.op("Sub", wide, g.reduce("ReduceMean", wide, 1))
    variance = g.reduce("ReduceMean", g.op("Mul", difference, difference), 1)
    deviation = g.op("Sqrt", g.op("Add", variance, g.weight(np.full((1, 1, 1, 1), EPSILON), wide=True)))
    return g.narrow(g.op("Div", difference if centred else wide, deviation))


def _convolution(g: GraphBuilder, x: str, c: int) -> str:
    """x / sqrt(var + epsilon), uncentred, the variance by a 1x1 convolution.

    It centres the channels, divides them by sqrt(C) and appends the constant sqrt(epsilon): the L2 norm of its
    result over the channels is sqrt(var + epsilon).
    """
    statistics = np.concatenate([(np.eye(c) - 1 / c) / np.sqrt(c), np.zeros((1, c))])[:, :, None, None]
    constant = np.append(np.zeros(c), np.sqrt(EPSILON))
    wide = g.widen(x)
    deviation = g.reduce("ReduceL2", g.conv(wide, statistics, constant, wide=True), 1)
    return g.narrow(g.op("Div", wide, deviation))
