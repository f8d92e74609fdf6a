"""ELAN as a sequence of fused kernels: two for each block, one each for head and tail.

Every step between 16-bit arrays; sums, softmax and the picture are float32. That this is enough is measured in
docs/design/accuracy.md. The format of the weights: restort.backends.fused.elan_weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from restort.backends.fused.elan_weights import Packed, pack
from restort.backends.fused.forward_pass import Pass
from restort.kernels import colour_head, lfe, upsample_tail, window_attention
from restort.kernels.launch import Launch
from restort.kernels.lfe import BORDER
from restort.kernels.machine import compiles, machine
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
    tiled: bool | None = None,
    broad: bool | None = None,
) -> Pass:
    """The launches for n pictures of h x w pixels, multiples of 16; `packed` is on `device`.

    The features alternate between two buffers: LFE reads its neighbours, so it writes to the other one, and attention
    works in place. With `keep_blocks` every group of blocks has a buffer of its own.
    `tiled`: blocks by the kernels in CUDA C++ (True) or Triton (False); by default the first, where they can be had.
    `broad`: of these, local feature extraction by that for Hopper (True), which has to fit, or for all GPUs (False); by
    default the first, where it pays.
    """
    capability, processors = machine(torch.device(device))
    if tiled is None:
        tiled = _can_tile(packed, torch.device(device), capability)
    if broad is None:
        broad = lfe.wide.pays(spec.channels, packed.part, capability)
    workspace = Workspace()
    wide = (n, h + 2 * BORDER, w + 2 * BORDER, packed.stored)
    head, *others = (workspace.take(wide, dtype) for _ in range(3))
    q, v = (workspace.take((n, h, w, 3 * packed.part), dtype) for _ in range(2))
    kept = [workspace.take(wide, dtype) for _ in range(spec.groups if keep_blocks else 0)]
    workspace.allocate(device)
    first, turns = workspace.tensor(head), [workspace.tensor(other) for other in others]
    queries, values = workspace.tensor(q), workspace.tensor(v)
    picture = torch.empty((n, spec.colors, h, w), dtype=torch.float32, device=device)
    result = torch.empty((n, spec.colors, h * spec.scale, w * spec.scale), dtype=torch.float32, device=device)

    launches = [
        colour_head.launch(
            picture,
            packed.offset,
            packed.head,
            first,
            (turns[0], turns[1]),
            spec.value_range,
            spec.channels,
            label="head",
        )
    ]
    blocks: dict[str, Tensor] = {}
    x = first
    for g, group in enumerate(packed.groups):
        for i, block in enumerate(group):
            label = f"body.{g}.{i}"
            y = turns[0] if x is not turns[0] else turns[1]
            lfe_blob, attention_blob = block.tiled if tiled and block.tiled else (None, None)
            launches.append(
                lfe.wide.launch(
                    x,
                    block.local_wide,
                    block.queries is not None,
                    y,
                    values,
                    queries,
                    spec.channels,
                    capability,
                    f"{label}.lfe",
                    processors,
                )
                if tiled and broad
                else lfe.tile.launch(
                    x,
                    lfe_blob,
                    block.queries is not None,
                    y,
                    values,
                    queries,
                    spec.channels,
                    capability,
                    f"{label}.lfe",
                )
                if tiled
                else lfe.launch(
                    x,
                    block.local,
                    block.values,
                    block.queries,
                    y,
                    values,
                    queries,
                    spec.channels,
                    capability,
                    f"{label}.lfe",
                )
            )
            ends = i == len(group) - 1
            last = ends and g == spec.groups - 1
            targets = [(y, first if last else None)]
            if keep_blocks and ends:
                mine = workspace.tensor(kept[g])
                mine.zero_()  # its border; what else is there is written
                blocks[f"body.{g}"] = mine[:, BORDER:-BORDER, BORDER:-BORDER]
                targets = [(mine, None), *(targets if last else [])]
            for target, extra in targets:
                launches.append(
                    window_attention.tile.launch(
                        queries,
                        values,
                        y,
                        attention_blob,
                        target,
                        spec.channels,
                        g % 2 == 1,
                        extra,
                        capability,
                        f"{label}.gmsa",
                    )
                    if tiled
                    else window_attention.launch(
                        queries,
                        values,
                        y,
                        block.out,
                        target,
                        spec.channels,
                        g % 2 == 1,
                        extra,
                        capability,
                        f"{label}.gmsa",
                    )
                )
            x = targets[-1][0]
    if tiled and packed.tail_tiled is not None and _can_tile_tail(packed, capability):
        tail = upsample_tail.tile.launch(
            x, packed.tail_tiled, result, spec.scale, spec.channels, capability, "tail"
        )
    else:
        tail = upsample_tail.launch(
            x, packed.tail, result, spec.scale, packed.factor, spec.channels, label="tail"
        )
    launches.append(tail)
    if capability >= 90:
        launches = [overlapping(launch) for launch in launches]
    return Pass(launches, picture, result, workspace, blocks if keep_blocks else None)


def overlapping(launch: Launch) -> Launch:
    """The same, begun before the launch before has ended, if the kernel knows how to wait for that."""
    if "OVERLAP" not in launch.constants:
        return launch
    return replace(launch, constants={**launch.constants, "OVERLAP": 1})


def _can_tile(packed: Packed, device: torch.device, capability: int) -> bool:
    """Whether the kernels take this network, and its device can compile and hold them."""
    size = packed.spec.channels, packed.part, capability
    if packed.groups[0][0].tiled is None or not (lfe.tile.fits(*size) and window_attention.tile.fits(*size)):
        return False
    return compiles(device)


def _can_tile_tail(packed: Packed, capability: int) -> bool:
    spec = packed.spec
    return upsample_tail.tile.fits(spec.channels, spec.colors, spec.scale, capability)
