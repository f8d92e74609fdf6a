"""Equal ranges of the input channels of a layer before it is quantised with one scale for all of them.

A channel of a layer's input is divided by s and the layer's weights for it are multiplied by s: the network computes
the same. The division costs nothing, because it moves into a linear map before: the depthwise convolution of the value
in a GDFN, the values v of a GMSA, and the first convolution of an LFE, whose ReLU lets a positive factor pass.

Sources: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section 4.1;
Xiao et al., "SmoothQuant", ICML 2023, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from restort.models.spec import ElanSpec
from restort.weights.checkpoint import Weights

ALPHA = 0.75  # how much of the spread of the inputs moves into the weights (docs/design/quantisation.md)
Array = npt.NDArray[Any]


def equalized(weights: Weights, largest: Mapping[str, Array]) -> tuple[Weights, dict[str, float]]:
    """Return weights of the same network with equalised channels, and the largest input of each layer in it.

    largest     by layer: the largest absolute value of each channel of its input, (C,)
    """
    state = {name: values.copy() for name, values in weights.state.items()}
    ranges = {}
    for layer, values in largest.items():
        source = _source(layer, weights)
        if source is None:
            ranges[layer] = float(values.max())
            continue
        names, rows = source
        weight = state[f"{layer}.weight"]
        values = values[: weight.shape[1]]  # a graph pads the channels of a GDFN with zeros
        of_weights = _positive(np.abs(weight).max(axis=(0, 2, 3)))
        factor = (_positive(values) ** ALPHA / of_weights ** (1 - ALPHA)).astype(np.float32)
        weight *= factor[None, :, None, None]
        for name in names:
            if name in state:
                state[name][rows] /= factor.reshape(-1, *[1] * (state[name].ndim - 1))
        ranges[layer] = float((values / factor).max())
    return replace(weights, state=state), ranges


def _positive(values: Array) -> Array:
    """Channels that are 0 everywhere, or almost, do not matter; their factor must stay a sound number."""
    positive: Array = np.maximum(values, 1e-3 * values.max() + 1e-20)
    return positive


def _source(layer: str, weights: Weights) -> tuple[tuple[str, ...], Array] | None:
    """The parameters that make the channels of the input of `layer` by a linear map, and their rows, in order."""
    spec = weights.spec
    columns = weights.state[f"{layer}.weight"].shape[1]
    before, _, part = layer.rpartition(".")
    if part == "project_out" and before.endswith(".ffn"):
        return (f"{before}.dwconv.weight", f"{before}.dwconv.bias"), np.arange(columns, 2 * columns)
    if not isinstance(spec, ElanSpec):
        return None
    if part == "project_out":  # the BatchNorm after the projection scales as its convolution would
        names = f"{before}.project_inp.1.weight", f"{before}.project_inp.1.bias"
        width = columns // len(spec.window_sizes)
        step = len(weights.state[names[0]]) // len(spec.window_sizes)  # q and v of a window size, or v alone
        return names, np.concatenate(
            [np.arange(step - width, step) + i * step for i in range(len(spec.window_sizes))]
        )
    if ".conv1." in layer:
        first = layer.replace(".conv1.", ".conv0.")
        return (f"{first}.weight", f"{first}.bias"), np.arange(columns)
    return None
