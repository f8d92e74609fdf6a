"""Small networks for AOT packages, equal in every process."""

from __future__ import annotations

from pathlib import Path

import torch

from restort.models.spec import ElanSpec, RestormerSpec, Spec
from restort.models.torch_network import build
from restort.weights.checkpoint import Weights

ELAN = ElanSpec(4, 2, 60, 1, 3, (4, 8, 16), 255.0, 2)
RESTORMER = RestormerSpec(3, 3, 24, (1, 1, 1, 1), 1, (1, 2, 2, 4), 2.66, False, "WithBias", False)
CASES: dict[str, tuple[Spec, tuple[int, int, int]]] = {
    "elan": (ELAN, (1, 16, 32)),
    "restormer": (RESTORMER, (1, 8, 16)),
}


def weights_of(spec: Spec) -> Weights:
    torch.manual_seed(0)
    state = {name: value.numpy() for name, value in build(spec).state_dict().items()}
    return Weights(state, spec, {}, "digest", Path("tiny.safetensors"))
