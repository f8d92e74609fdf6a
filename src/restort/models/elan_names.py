"""The second naming scheme of ELAN, and buffers that a file may omit.

The scheme of the Fried Rice Lab (github.com/Fried-Rice-Lab/FriedRiceLab) numbers the parts of blocks that the
published code names, and calls the fixed shift weights `mask`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError
from restort.models.spec import ELAN_RGB_MEAN

_SECOND_SCHEME = re.compile(r"body\.\d+\.modules_lfe\.\d+\.lfe\.")
_RENAMES = (
    (re.compile(r"^head\.(weight|bias)$"), r"head.0.\1"),
    (re.compile(r"\.modules_lfe\.(\d+)\.lfe\.(\d)\."), r".modules_lfe.lfe_\1.conv\2."),
    (re.compile(r"\.modules_gmsa\.(\d+)\."), r".modules_gmsa.gmsa_\1."),
    (re.compile(r"\.conv2\."), ".conv1."),  # the activation between the two convolutions had the number 1
    (re.compile(r"\.(conv[01])\.(weight|bias)$"), r".\1.shift_conv.conv1x1.\2"),
    (re.compile(r"\.(conv[01])\.mask$"), r".\1.shift_conv.weight"),
)
# Where the five groups of channels look: right, left, down, up, nowhere (row, column of the 3x3 kernel).
_SHIFTS = ((1, 2), (1, 0), (2, 1), (0, 1), (1, 1))


def is_elan(names: Mapping[str, Any]) -> bool:
    """Return whether the names are of an ELAN, in either scheme."""
    return any(".modules_lfe." in name for name in names)


def published_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state under the names of the published code; unchanged if it has them already."""
    if not any(_SECOND_SCHEME.match(name) for name in state):
        return dict(state)
    return {_published(name): value for name, value in state.items()}


def _published(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def shift_weights(channels: int) -> npt.NDArray[np.float32]:
    """Return the fixed weights (channels, 1, 3, 3) of the shift: one fifth of the channels in each direction.

    ELAN, Zhang et al., ECCV 2022, section 3.2 and figure 3 ("shift-conv").
    """
    weights = np.zeros((channels, 1, 3, 3), np.float32)
    group = channels // 5
    for i, (row, column) in enumerate(_SHIFTS):
        end = channels if i == len(_SHIFTS) - 1 else (i + 1) * group
        weights[i * group : end, 0, row, column] = 1
    return weights


def add_fixed_buffers(state: dict[str, Any]) -> None:
    """Add buffers that training never changes and some files omit: mean shift, channel shift, counters."""
    colors = _extent(state, "head.0.weight", 1)
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        other = state.get("add_mean.bias" if sign < 0 else "sub_mean.bias")
        if f"{name}.weight" not in state:
            state[f"{name}.weight"] = np.eye(colors, dtype=np.float32).reshape(colors, colors, 1, 1)
        if f"{name}.bias" not in state and isinstance(other, np.ndarray):
            state[f"{name}.bias"] = -other
        elif f"{name}.bias" not in state and colors == len(ELAN_RGB_MEAN):
            mean = np.array(ELAN_RGB_MEAN, np.float32) * np.float32(
                255
            )  # in this order, as float32 rounds it
            state[f"{name}.bias"] = np.float32(sign) * mean
    for name in list(state):
        if name.endswith(".shift_conv.conv1x1.weight"):
            state.setdefault(name.replace("conv1x1.weight", "weight"), shift_weights(_extent(state, name, 1)))
        elif name.endswith(".running_mean"):
            state.setdefault(name.replace("running_mean", "num_batches_tracked"), np.zeros((), np.int64))


def check_shifts(state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise RestortError where a stored shift differs from `shift_weights`, which backends compute by indices."""
    for name, value in state.items():
        if name.endswith(".shift_conv.weight") and not np.array_equal(value, shift_weights(value.shape[0])):
            raise RestortError(
                f"the parameter {name} is not ELAN's fixed shift in five groups; it cannot be run"
            )


def _extent(state: Mapping[str, Any], name: str, axis: int) -> int:
    shape = tuple(getattr(state.get(name), "shape", ()))
    if len(shape) != 4:
        raise RestortError(
            f"the weights lack the parameter {name}, or it has another shape; the file is incomplete"
        )
    return int(shape[axis])
