"""ELAN as a sequence of fused kernels: two for each block, one each for head and tail.

Every array between two kernels has 16 bits; sums, softmax and the image are float32. The accuracy of that is measured
in docs/design/accuracy.md. The format of the weights: restort.backends.fused.elan_weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from restort.backends.fused.elan_weights import Block, Packed, pack
from restort.backends.fused.forward_pass import Pass
from restort.kernels.colour_head import triton as colour_head
from restort.kernels.gpu_target import can_compile_cuda, gpu_target
from restort.kernels.launch import Launch
from restort.kernels.lfe import sm80 as lfe_sm80
from restort.kernels.lfe import sm90 as lfe_sm90
from restort.kernels.lfe import triton as lfe
from restort.kernels.lfe.triton import BORDER
from restort.kernels.upsample_tail import sm80 as upsample_tail_sm80
from restort.kernels.upsample_tail import triton as upsample_tail
from restort.kernels.window_attention import sm80 as window_attention_sm80
from restort.kernels.window_attention import triton as window_attention
from restort.kernels.workspace import Workspace
from restort.models.spec import ElanSpec

Tensor = Any

__all__ = ["Packed", "pack", "plan"]


def plan(
    packed: Packed,
    spec: ElanSpec,
    n: int,
    h: int,
    w: int,
    dtype: torch.dtype,
    device: Any,
    keep_blocks: bool = False,
    cuda: bool | None = None,
    sm90: bool | None = None,
) -> Pass:
    """Plan the launches for n images of h x w pixels, multiples of 16; `packed` is on `device`.

    The features alternate between two buffers: LFE reads its neighbours, so it writes to the other one, and attention
    works in place. With `keep_blocks` every group of blocks has a buffer of its own.
    `cuda`: blocks are kernels in CUDA C++ (True) or Triton (False); by default CUDA C++, if it can be compiled.
    `sm90`: of these, LFE is the kernel for Hopper (True), which has to fit, or sm80.cu (False); by default if it fits.
    """
    capability, num_sms = gpu_target(torch.device(device))
    if cuda is None:
        cuda = _cuda_fits(packed, capability) and can_compile_cuda(torch.device(device))
    if sm90 is None:
        sm90 = lfe_sm90.fits(spec.channels, packed.part, capability)
    workspace = Workspace()
    padded = (n, h + 2 * BORDER, w + 2 * BORDER, packed.stored)
    head, *others = (workspace.take(padded, dtype) for _ in range(3))
    q, v = (workspace.take((n, h, w, 3 * packed.part), dtype) for _ in range(2))
    kept = [workspace.take(padded, dtype) for _ in range(spec.groups if keep_blocks else 0)]
    workspace.allocate(device)
    first, turns = workspace.tensor(head), [workspace.tensor(other) for other in others]
    queries, values = workspace.tensor(q), workspace.tensor(v)
    image = torch.empty((n, spec.colors, h, w), dtype=torch.float32, device=device)
    result = torch.empty((n, spec.colors, h * spec.scale, w * spec.scale), dtype=torch.float32, device=device)

    def local_features(block: Block, x: Tensor, y: Tensor, label: str) -> Launch:
        arrays, has_q = (y, values, queries, spec.channels), block.queries is not None
        if cuda and sm90:
            return lfe_sm90.launch(x, block.lfe_sm90, has_q, *arrays, label, num_sms)
        if cuda and block.sm80:
            return lfe_sm80.launch(x, block.sm80[0], has_q, *arrays, capability, label)
        return lfe.launch(x, block.local, block.values, block.queries, *arrays, capability, label)

    def attention(block: Block, y: Tensor, target: Tensor, rolled: bool, extra: Any, label: str) -> Launch:
        arrays = (target, spec.channels, rolled, extra, label)
        if cuda and block.sm80:
            return window_attention_sm80.launch(queries, values, y, block.sm80[1], *arrays)
        return window_attention.launch(queries, values, y, block.out, *arrays)

    borders = turns[0], turns[1]
    launches = [
        colour_head.launch(
            image, packed.offset, packed.head, first, borders, spec.value_range, spec.channels, label="head"
        )
    ]
    blocks: dict[str, Tensor] = {}
    x = first
    for g, group in enumerate(packed.groups):
        for i, block in enumerate(group):
            label = f"body.{g}.{i}"
            y = turns[0] if x is not turns[0] else turns[1]
            launches.append(local_features(block, x, y, f"{label}.lfe"))
            ends = i == len(group) - 1
            last = ends and g == spec.groups - 1
            targets = [(y, first if last else None)]
            if keep_blocks and ends:
                own = workspace.tensor(kept[g])
                own.zero_()  # its border; the kernel writes everything else
                blocks[f"body.{g}"] = own[:, BORDER:-BORDER, BORDER:-BORDER]
                targets = [(own, None), *(targets if last else [])]
            for target, extra in targets:
                launches.append(attention(block, y, target, g % 2 == 1, extra, f"{label}.gmsa"))
            x = targets[-1][0]
    if cuda and packed.tail_sm80 is not None and _tail_fits(packed, capability):
        tail = upsample_tail_sm80.launch(
            x, packed.tail_sm80, result, spec.scale, spec.channels, capability, "tail"
        )
    else:
        tail = upsample_tail.launch(
            x, packed.tail, result, spec.scale, packed.factor, spec.channels, label="tail"
        )
    launches.append(tail)
    if capability >= 90:
        launches = [overlapping(launch) for launch in launches]
    return Pass(launches, image, result, workspace, blocks if keep_blocks else None)


def overlapping(launch: Launch) -> Launch:
    """Return the launch as a programmatic dependent one, if its kernel has griddepcontrol.wait."""
    if "OVERLAP" not in launch.constants:
        return launch
    return replace(launch, constants={**launch.constants, "OVERLAP": 1})


def _cuda_fits(packed: Packed, capability: int) -> bool:
    """Return whether the kernels in CUDA C++ take this network and that GPU can run them."""
    size = packed.spec.channels, packed.part, capability
    return packed.groups[0][0].sm80 is not None and lfe_sm80.fits(*size) and window_attention_sm80.fits(*size)


def _tail_fits(packed: Packed, capability: int) -> bool:
    spec = packed.spec
    return upsample_tail_sm80.fits(spec.channels, spec.colors, spec.scale, capability)
