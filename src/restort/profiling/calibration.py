"""Calibration of a quantised graph: the largest input of every layer, over pictures as the network meets them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.equalization import equalized
from restort.export.graph import RANGE
from restort.export.qdq import Quantization, QuantType, quantizable_layers
from restort.profiling.pairs import pairs
from restort.utils.quiet_imports import onnx_runtime
from restort.weights.checkpoint import Weights

Array = npt.NDArray[Any]

EDGE = 128  # pixels of an input a side: a range that more pixels widen is clipped by little
MOST_PICTURES = 32  # of a folder; more change no range that matters
TRAINED_RANGES = (
    "activation_ranges"  # metadata of weights that were trained quantised: JSON, largest input by layer
)
TRAINED_KIND = "quantization"


@dataclass(frozen=True)
class Calibrated:
    """What a quantised graph is emitted from.

    weights     of the same network, its channels equalised (restort.export.equalization)
    pictures    names of those it was measured on; none for weights that were trained quantised
    """

    weights: Weights
    quantization: Quantization
    pictures: list[str]


def calibrated(
    weights: Weights,
    kind: QuantType,
    pictures: Sequence[Path] = (),
    progress: Callable[[int, int], object] = lambda done, count: None,
) -> Calibrated:
    """Return the quantisation of all layers of `weights`.

    pictures    clean ones; they are made smaller or noisy as the task has it (restort.profiling.pairs). None: two
                synthetic ones, or, for weights that were trained quantised, no picture but the ranges of the training.
    progress    called with the number of pictures done and of all pictures.

    Ranges are the largest absolute values, in the network's own scale: float32, input in [0, 1], on ONNX Runtime.

    Raises RestortError where a picture cannot be used, and for ranges in the metadata that do not fit the network.
    """
    if not pictures and TRAINED_RANGES in weights.metadata:
        return Calibrated(weights, _trained(weights, kind), [])
    ort = onnx_runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph = emit(weights, observe=True).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()[1:]]
    largest: dict[str, Array] = {}
    chosen = pictures[:: -(-len(pictures) // MOST_PICTURES) or 1]
    measured = pairs(weights, chosen, EDGE)
    for i, pair in enumerate(measured):
        progress(i, len(measured))
        for name, value in zip(names, session.run(names, {"input": pair.x}), strict=True):
            channels = value.reshape(-1).astype(np.float64)
            largest[name] = np.maximum(largest.get(name, 0.0), channels)
    if not all(np.isfinite(value).all() for value in largest.values()):
        raise RestortError("calibration gave NaN or infinity; check the weights")
    same, ranges = equalized(weights, {name.removeprefix(RANGE): value for name, value in largest.items()})
    return Calibrated(same, Quantization(kind, ranges), [pair.name for pair in measured])


def _trained(weights: Weights, kind: QuantType) -> Quantization:
    """The ranges that the weights were trained with."""
    trained = weights.metadata.get(TRAINED_KIND)
    if trained != kind:
        raise RestortError(
            f"{weights.path}: trained for {trained}, not {kind}; choose --precision {trained}, or give --calibration"
        )
    try:
        ranges = {name: float(value) for name, value in json.loads(weights.metadata[TRAINED_RANGES]).items()}
    except (ValueError, TypeError, AttributeError):
        ranges = {}
    if set(ranges) != set(quantizable_layers(weights.spec)) or not np.isfinite(list(ranges.values())).all():
        raise RestortError(
            f"{weights.path}: its activation ranges do not fit the network; give --calibration"
        )
    return Quantization(kind, ranges)
