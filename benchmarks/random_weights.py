"""Random weights to measure speed with, where trained ones do not exist or may not be shipped. Needs no PyTorch."""

from __future__ import annotations

import numpy as np

from restort.models.spec import Spec, parameter_shapes


def random_state(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights whose activations neither grow nor vanish with depth, so that precisions can be compared.

    Projections are scaled by 1/sqrt(fan-in) and the branches' last ones by another 0.3; ELAN's queries are
    scaled down to give its unscaled softmax on 0..255 a moderate temperature.
    """
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for name, shape in parameter_shapes(spec).items():
        state[name] = _random_parameter(rng, spec, name, shape)
    return state


def _random_parameter(rng: np.random.Generator, spec: Spec, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.array(0, np.int64)
    if name.startswith(("sub_mean", "add_mean")):
        return _mean_shift(spec, name, shape)
    if name.endswith(("temperature", "running_var", "body.weight", "project_inp.1.weight")):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    if len(shape) == 1:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith("shift_conv.weight"):
        return _shift_weights(shape[0])
    gain = 0.3 if name.endswith(("project_out.weight", "conv1.shift_conv.conv1x1.weight")) else 1.0
    if name.endswith("project_inp.0.weight") and spec.architecture == "elan":
        gain = 8.0 / spec.value_range
    return (gain * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _shift_weights(channels: int) -> np.ndarray:
    """One tap per channel: right, left, down, up for a fifth of the channels each, the rest stays in place."""
    weight = np.zeros((channels, 1, 3, 3), np.float32)
    fifth = channels // 5
    for i, (row, column) in enumerate([(1, 2), (1, 0), (2, 1), (0, 1)]):
        weight[i * fifth : (i + 1) * fifth, 0, row, column] = 1
    weight[4 * fifth :, 0, 1, 1] = 1
    return weight


def _mean_shift(spec: Spec, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("weight"):
        return np.eye(shape[0], dtype=np.float32).reshape(shape)
    mean = np.resize(np.array([0.4488, 0.4371, 0.4040], np.float32), shape) * spec.value_range
    return (-mean if name.startswith("sub") else mean).astype(np.float32)
