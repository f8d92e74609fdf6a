"""A stand-in for restort.backends.fused.restormer_planner and .elan_planner: the same promises, one small kernel.

The result is the first channels of the input, enlarged by repetition, after a detour through `GAIN` times the value in
the storage type: with a large GAIN float16 overflows there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from restort.backends.fused.forward_pass import Pass
from restort.kernels.launch import Launch
from restort.kernels.workspace import Workspace
from restort.models.block_names import block_channels

GAIN = 2.0
plans: list[tuple[int, int, int]] = []
room: list[int] = []  # where it holds a number, a plan of more pixels runs out of memory


@triton.jit(do_not_specialize=["count"])
def multiply(x, y, count, GAIN: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    tl.store(y + offsets, (tl.load(x + offsets, mask=inside).to(tl.float32) * GAIN), mask=inside)


@triton.jit(do_not_specialize=["height", "width", "count"])
def enlarge(x, y, height, width, count, SCALE: tl.constexpr, GAIN: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    column = offsets % (width * SCALE)
    row = offsets // (width * SCALE)
    plane = row // (height * SCALE)
    source = (plane * height + row % (height * SCALE) // SCALE) * width + column // SCALE
    tl.store(y + offsets, tl.load(x + source, mask=inside).to(tl.float32) * GAIN, mask=inside)


@dataclass
class Packed:
    gain: float
    device: Any = "cpu"

    def to(self, device: Any) -> Packed:
        return Packed(self.gain, device)


def pack(weights: Any, dtype: Any) -> Packed:
    return Packed(GAIN)


def plan(
    packed: Packed, spec: Any, n: int, h: int, w: int, dtype: Any, device: Any, *, keep_blocks: bool = False
) -> Pass:
    if torch.device(device).type != "meta":
        plans.append((n, h, w))
    if room and n * h * w > room[0]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    workspace = Workspace()
    number = workspace.take((n, spec.in_channels, h, w), dtype)
    workspace.release(number)
    workspace.allocate(device)
    wide = workspace.tensor(number)
    x = torch.empty((n, spec.in_channels, h, w), dtype=torch.float32, device=device)
    y = torch.empty(
        (n, spec.out_channels, h * spec.scale, w * spec.scale), dtype=torch.float32, device=device
    )
    blocks = None
    if keep_blocks:
        blocks = {
            name: torch.full((n, h, w, c + 8), float(i), dtype=dtype, device=device)
            for i, (name, c) in enumerate(block_channels(spec).items())
        }
    launches = [
        Launch(
            multiply,
            {"x": x, "y": wide},
            {"count": x.numel()},
            {"GAIN": packed.gain, "BLOCK": 1024},
            (triton.cdiv(x.numel(), 1024),),
            moved=6 * x.numel(),
            label="in",
        ),
        Launch(
            enlarge,
            {"x": wide, "y": y},
            {"height": h, "width": w, "count": y.numel()},
            {"SCALE": spec.scale, "GAIN": 1 / packed.gain, "BLOCK": 1024},
            (triton.cdiv(y.numel(), 1024),),
            moved=6 * y.numel(),
            label="out",
        ),
    ]
    return Pass(launches, x, y, workspace, blocks)
