"""Weights to begin a run with: another model's, also where the new network is deeper or has values in another range."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from restort.models.spec import ElanSpec, Spec
from train.ship import SHIPPED_RANGE

# the last convolutions of a block: with zeros there a block adds nothing to its input
LAST = (
    "attn.project_out.weight", "attn.project_out.bias", "ffn.project_out.weight", "ffn.project_out.bias",
    "conv1.shift_conv.conv1x1.weight", "conv1.shift_conv.conv1x1.bias",
    ".project_out.weight", ".project_out.bias",
)  # fmt: skip


def starting_weights(path: Path, model: nn.Module, spec: Spec) -> dict[str, Tensor]:
    """A state for `model`: every parameter of the file whose name and shape agree, its own initial values elsewhere.

    Blocks that the file does not have begin as identities, so that a network deeper than the file's computes what the
    file's does. An ELAN of another range of values is rescaled. A tail for another scale begins anew.
    """
    own = model.state_dict()
    device = next(iter(own.values())).device
    given = {k: v.float() for k, v in load_file(path, device=str(device)).items()}
    if isinstance(spec, ElanSpec):
        given = _in_range(given, spec)
    taken = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not taken:
        raise ValueError(f"{path} has no parameter of this network")
    added = {k: v.zero_() for k, v in own.items() if k not in given and k.endswith(LAST)}
    return own | added | taken


def _in_range(state: dict[str, Tensor], spec: ElanSpec) -> dict[str, Tensor]:
    """Shipped files have values in [0, 255] and leave the mean colour's buffers out; files of runs have them."""
    if "sub_mean.bias" in state or spec.rgb_range == SHIPPED_RANGE:
        return state
    ratio = spec.rgb_range / SHIPPED_RANGE
    changed = {"head.0.weight": 1 / ratio, "tail.0.weight": ratio, "tail.0.bias": ratio}
    return state | {k: state[k] * factor for k, factor in changed.items()}
