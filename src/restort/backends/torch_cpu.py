"""The backend `torch`: the reference networks in PyTorch on the CPU, channels last, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import UsageError
from restort.runner import Array, Progress, Runner, checked, checked_rows, closed
from restort.utils.array_types import Rows
from restort.utils.cpu import default_threads
from restort.weights.checkpoint import Weights


class TorchRunner(Runner):
    """The PyTorch network in inference mode.

    With precision bf16, weights and activations are bfloat16 (autocast is slower and no closer to float32); statistics
    are float32. PyTorch has one thread count per process; the last runner made sets it.
    """

    name = "torch"

    def __init__(self, weights: Weights, precision: str = "fp32", threads: int | None = None) -> None:
        import torch

        from restort.models.torch_network import build

        torch.set_num_threads(threads or default_threads())
        self.precision = precision
        self.spec = weights.spec
        self._type = torch.bfloat16 if precision == "bf16" else torch.float32
        model = build(weights.spec, weights.state, self._type)
        self._model: Any = model.to(memory_format=torch.channels_last)

    def __call__(self, x: Array) -> Array:
        import torch

        x = checked(x, self.spec)
        model = self._model
        if model is None:
            raise closed(self.name)
        scale = self.spec.value_range
        with torch.inference_mode():
            image = torch.from_numpy(x) * scale
            image = image.to(self._type).contiguous(memory_format=torch.channels_last)
            result = model(image).float() / scale
        return np.ascontiguousarray(result.numpy(), np.float32)

    def exact(
        self, x: Array | Rows, *, memory_bytes: int, folder: Path, progress: Progress | None = None
    ) -> Iterator[tuple[int, Array]]:
        """Compute the whole-image result by restort.backends.strips, in float32."""
        from restort.backends.strips.network import StripNetwork

        if not self.spec.whole_image:
            raise UsageError("--tile exact is for Restormer only; run ELAN with --tile auto or none")
        x = checked_rows(x, self.spec)
        model = self._model
        if model is None:
            raise closed(self.name)
        return StripNetwork(model).stream(
            x, memory_bytes=memory_bytes, folder=folder, progress=progress, notify=self.notify
        )

    def close(self) -> None:
        self._model = None
