"""One forward pass of a network at one shape, as a list of launches over memory that is planned once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from restort.kernels.launch import Launch
from restort.kernels.workspace import Workspace

Tensor = Any


@dataclass
class Pass:
    """What `plan(...)` of restort.backends.fused.restormer and .elan returns.

    launches    in the order they run, on one stream.
    input       float32 (N, C, H, W) in [0, 1], contiguous, on the device; written by the caller.
    output      float32 (N, C', H * scale, W * scale), contiguous, on the scale of [0, 1] and not clipped.
    workspace   holds everything in between; neither `input` nor `output` lies in it.
    blocks      each block's output by its name (restort.models.blocks), if it was asked to keep them: (N, H, W, C),
                the published channels first, then padding, in the network's own range.
    """

    launches: list[Launch]
    input: Tensor
    output: Tensor
    workspace: Workspace
    blocks: dict[str, Tensor] | None = None

    def run(self) -> None:
        """Launch all of it on the current stream."""
        for launch in self.launches:
            launch()

    @property
    def flops(self) -> int:
        """Multiply-adds counted twice, of all launches."""
        return sum(launch.flops for launch in self.launches)

    @property
    def moved(self) -> int:
        """Bytes that the launches have to read and write at least."""
        return sum(launch.moved for launch in self.launches)
