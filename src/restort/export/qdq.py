"""Explicit quantisation: QuantizeLinear and DequantizeLinear around the 1x1 convolutions of the blocks.

Which layers are quantised, and why the others are not: docs/design/quantisation.md. Scales are symmetric: the largest
absolute value, of an output channel's weights or of a layer's input over the calibration pictures, becomes the largest
number of the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError
from restort.models.block_names import block_names
from restort.models.spec import RestormerSpec, Spec

QuantType: TypeAlias = Literal["int8", "fp8"]

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The largest number of each type; 'fp8' is float8_e4m3fn. INT8 leaves -128 out, as TensorRT does for weights."""


@dataclass(frozen=True)
class Quantization:
    """What a quantised graph needs beside the weights.

    kind    the type of inputs and weights of the quantised layers
    ranges  by layer (`quantizable_layers`): the largest absolute value of its input. Layers without one stay float.
    """

    kind: QuantType
    ranges: Mapping[str, float]


def quantizable_layers(spec: Spec) -> tuple[str, ...]:
    """The modules of the network that can be quantised, in the order they run: 1x1 convolutions of its blocks.

    MDTA's output projection is not one: a graph multiplies it into the small attention matrix.
    """
    blocks = block_names(spec)
    if isinstance(spec, RestormerSpec):
        return tuple(
            f"{b}.{part}" for b in blocks for part in ("attn.qkv", "ffn.project_in", "ffn.project_out")
        )
    parts = (
        "modules_lfe.lfe_{}.conv0.shift_conv.conv1x1",
        "modules_lfe.lfe_{}.conv1.shift_conv.conv1x1",
        "modules_gmsa.gmsa_{}.project_inp.0",
        "modules_gmsa.gmsa_{}.project_out",
    )
    count = range(spec.n_share + 1)
    return tuple(f"{b}.{part.format(i)}" for b in blocks for i in count for part in parts)


def check_quantization(quantization: Quantization, spec: Spec, precision: str, opset: int) -> None:
    """Raise RestortError where a layer cannot be quantised, or `opset` lacks a type that the graph needs."""
    unknown = sorted(set(quantization.ranges) - set(quantizable_layers(spec)))
    if unknown:
        raise RestortError(
            f"layer {unknown[0]!r} cannot be quantised; choose 1x1 convolutions of blocks (quantizable_layers)"
        )
    if precision == "bf16":
        raise RestortError("a quantised graph is fp32 or fp16 besides, not bf16")
    if opset < 19 and (quantization.kind == "fp8" or precision != "fp32"):
        what = "FP8" if quantization.kind == "fp8" else f"INT8 beside {precision}"
        raise RestortError(f"opset {opset} has no {what}; use opset 20, or INT8 beside fp32")


def float8_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Round `values` to float8_e4m3fn, to nearest even, and return the bits; larger ones become 448.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1.
    """
    codes = np.arange(127)  # 0 to 448; 127 is NaN
    exponent, mantissa = codes >> 3, codes & 7
    numbers = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    middles = (numbers[1:] + numbers[:-1]) / 2
    size = np.abs(values)
    code = np.searchsorted(middles, size)  # halfway: the lower of two
    halfway = (code < 126) & (size == middles[np.minimum(code, 125)])
    code += halfway & (code % 2 == 1)
    bits: npt.NDArray[np.uint8] = (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8)
    return bits
