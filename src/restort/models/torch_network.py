"""Build a PyTorch network from a descriptor and a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from restort.models.elan import Elan
from restort.models.restormer import Restormer
from restort.models.spec import RestormerSpec, Spec


def build(
    spec: Spec, state: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Build the network of `spec` in evaluation mode, with the parameters of `state` (arrays or tensors) if given.

    Its input and output are in the network's own range, [0, spec.value_range].
    """
    model: nn.Module = Restormer(spec) if isinstance(spec, RestormerSpec) else Elan(spec)
    if state is not None:
        tensors = {name: torch.as_tensor(value) for name, value in state.items()}
        model.load_state_dict(tensors, strict=False)
        absent = [n for n, _ in model.named_parameters() if n not in tensors]
        if absent:
            raise KeyError(f"the state lacks {absent[0]}")
    return model.to(dtype).eval()
