"""One forward pass of a network at one shape: a list of launches over memory that is planned once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from restort.kernels.launch import Launch
from restort.kernels.workspace import Workspace

Tensor = Any


@dataclass
class Pass:
    """A planned pass, from `plan` of restort.backends.fused.restormer_planner or .elan_planner.

    launches    in the order they run, on one stream.
    input       float32 (N, C, H, W) in [0, 1], contiguous, on the device; written by the caller.
    output      float32 (N, C', H * scale, W * scale), contiguous, on the scale of [0, 1] and not clipped.
    workspace   all intermediate results; `input` and `output` are apart from it.
    blocks      with keep_blocks each block's output by its name (restort.models.block_names): (N, H, W, C), the
                published channels first, then padding, in the network's own range.
    """

    launches: list[Launch]
    input: Tensor
    output: Tensor
    workspace: Workspace
    blocks: dict[str, Tensor] | None = None

    def run(self) -> None:
        """Launch all kernels on the current stream."""
        for launch in self.launches:
            launch()

    @property
    def flops(self) -> int:
        """Floating-point operations of all launches, a multiply-add being two."""
        return sum(launch.flops for launch in self.launches)

    @property
    def moved(self) -> int:
        """The least number of bytes that the launches read and write."""
        return sum(launch.moved for launch in self.launches)
