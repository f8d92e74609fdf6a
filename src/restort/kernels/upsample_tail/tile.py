"""The same by a kernel in CUDA C++ (tile.cu): its weights, and how it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restort.kernels.cuda import CudaKernel
from restort.kernels.fragments import bits, units
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("tail_tile", Path(__file__).with_name("tile.cu"))


def suits(scale: int, dtype: Any) -> bool:
    """Whether the kernel can make pictures of this scale."""
    return scale in (2, 4) and dtype.itemsize == 2


def pack(weights: tuple[Tensor, Tensor], channels: int, colors: int, scale: int, factor: float) -> Tensor:
    """The nine taps, the factor, the bias, int32, in the kernel's order; arguments as in reference.upsample_tail."""
    w, b = weights
    rows, count = -(-channels // 32) * 32, -(-colors * scale**2 // 16) * 16
    if scale == 4:  # of two tiles of 8, a thread has four in a row
        mine = [
            16 * t + 4 * (c // 2) + 2 * h + c % 2
            for t in range(count // 16)
            for h in range(2)
            for c in range(8)
        ]
    else:
        mine = list(range(count))
    wide = torch.cat([w, w.new_zeros(9, w.shape[1], max(0, count - w.shape[2]))], 2)[:, :rows, mine]
    found = []
    for tap in wide:
        cut = units(tap)  # (steps, tiles, 32, 2, 2)
        steps, tiles = cut.shape[:2]
        pairs = cut.reshape(steps, tiles // 2, 2, 32, 4).transpose(2, 3)
        found.append(bits(pairs.reshape(-1)))
    bias = torch.cat([b, b.new_zeros(max(0, count - len(b)))])[mine]
    return torch.cat([*found, bits(torch.tensor([factor, 0, 0, 0])), bits(bias.float())])


def tiles(channels: int, capability: int) -> dict[str, int]:
    """Warps (two rows of 16 pixels each), taps in the ring (0: all are kept), blocks a multiprocessor."""
    if SHARED_KIB.get(capability, 99) < 200:
        return {"WARPS": 4, "STAGES": 2, "BLOCKS": 1}
    return {"WARPS": 8, "STAGES": 0 if channels <= 64 else 3, "BLOCKS": 2 if channels <= 64 else 1}


def fits(channels: int, colors: int, scale: int, capability: int) -> bool:
    """Whether a block finds room in that GPU's shared memory."""
    cut = tiles(channels, capability)
    return (
        shared_bytes(channels, colors, scale, cut["WARPS"], cut["STAGES"])
        <= SHARED_KIB.get(capability, 99) * 1024
    )


def shared_bytes(channels: int, colors: int, scale: int, warps: int, stages: int) -> int:
    """Shared memory of a block; tile.cu asserts the same number."""
    steps = -(-channels // 32) * 2
    tile = 18 * (2 * warps + 2) * (steps * 32 + 16)
    return -(-tile // 128) * 128 + (stages or 9) * steps * -(-colors * scale**2 // 16) * 512


def launch(
    x: Tensor,
    blob: Tensor,
    out: Tensor,
    scale: int,
    channels: int,
    capability: int = 90,
    label: str = "",
    **variant: int,
) -> Launch:
    """The launch; arrays as in reference.upsample_tail, `blob` from `pack`. `variant` overrides `tiles`."""
    n, colors, h, w = out.shape
    h, w = h // scale, w // scale
    if h % 16 or w % 16:
        raise ValueError(f"{h} x {w} pixels are no multiple of 16")
    cut = {**tiles(channels, capability), **variant}
    made = colors * scale * scale
    return Launch(
        KERNEL,
        {"x": x, "blob": blob, "out": out},
        {"h": h, "w": w},
        {
            "C": channels,
            "COLORS": colors,
            "SCALE": scale,
            "BF16": int("bfloat16" in str(x.dtype)),
            "OVERLAP": 0,
            **cut,
            "SHARED": shared_bytes(channels, colors, scale, cut["WARPS"], cut["STAGES"]),
        },
        (w // 16, h // (2 * cut["WARPS"]), n),
        warps=cut["WARPS"],
        flops=2 * n * h * w * 9 * channels * made,
        moved=n * h * w * (channels * x.element_size() + 4 * made),
        label=label,
    )
