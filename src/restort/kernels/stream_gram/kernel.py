"""The binding of kernel.cu: how it is cut up, and when it is worth it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restort.kernels.cuda import CudaKernel
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("stream_gram", Path(__file__).with_name("kernel.cu"))
WIDE = 16


def tiles(channels: int, capability: int) -> dict[str, int]:
    """How a picture is cut up: tiles of 16 x TALL pixels, WARPS, CHUNK channels a step, BLOCKS a multiprocessor.

    FUSED 1: the convolution of a chunk stands between the products of the next; WGMMA 1: Hopper's products of four
    warps for the expansion (then not FUSED); PART_K: columns of a warp's part of the Gram matrix, which has 48 rows
    (others where the parts could not be shared out among the warps).
    """
    cut = {"WARPS": 4, "TALL": 8, "CHUNK": 48, "FUSED": 1, "WGMMA": 0, "PART_K": 48 if channels <= 48 else 24}
    if channels > 96:
        return {**cut, "WARPS": 12, "PART_K": 16, "BLOCKS": 1, "WGMMA": int(capability == 90)}
    if capability in (86, 89, 120):  # 99 KB a block, 100 KB a multiprocessor
        return {**cut, "CHUNK": 48 if channels <= 48 else 16, "BLOCKS": 1}
    return {**cut, "BLOCKS": 2}


def cut_up(channels: int, heads: int, capability: int, variant: Mapping[str, int]) -> dict[str, int]:
    """`tiles` with some of it overridden, and what follows from that."""
    cut = {**tiles(channels, capability), **variant}
    if cut["WGMMA"]:
        cut["FUSED"] = 0

    def shared_out(warps: int, part_k: int) -> bool:
        """Whether every warp gets as many parts of the Gram matrices."""
        return warps % (channels // heads // 48 * (channels // part_k)) == 0

    if not shared_out(cut["WARPS"], cut["PART_K"]):
        cut["PART_K"] = 24 if shared_out(cut["WARPS"], 24) else 48
    if not shared_out(cut["WARPS"], cut["PART_K"]):
        cut["WARPS"] = 8
    return cut


def row_bytes(channels: int, chunk: int, wgmma: int) -> int:
    """Shared memory of a chunk's rows of the weights and their shifts."""
    units = -(-channels // 16) * 2
    return (units * (chunk * 16 + 32) if wgmma else chunk * (units * 16 + 16)) + chunk * 8


def shared_bytes(channels: int, tall: int, chunk: int, wgmma: int = 0) -> int:
    """Shared memory of a block; kernel.cu asserts the same number."""
    pixels = (WIDE + 2) * (tall + 2)
    row = -(-channels // 16) * 32 + 16
    products = WIDE * tall * (4 * channels + 16)
    rest = pixels * (2 * chunk + 16) + row_bytes(channels, chunk, wgmma) + 10 * chunk * 2
    over = pixels * row <= products and channels // chunk > 1
    return products + 16 + 2 * rest + (0 if over else pixels * row)


def pack(w: Tensor, affine: Tensor, dw16: Tensor, chunk: int, wgmma: int = 0) -> Tensor:
    """The weights as they lie in shared memory, one number of 16 bits after another, in the type of w.

    Of every chunk of channels: the rows of w with their padding, then the shifts affine[1], as float32, each twice
    over; after that, of every chunk: the taps and the bias. Rows 2 j, 2 j + 1 of 16 are channels 4 j, 4 j + 1 and rows
    2 j + 8, 2 j + 9 the next two, so that the four that a thread gets from two products are neighbours.
    """
    import torch

    rows, channels = w.shape
    chunks, steps = rows // chunk, -(-channels // 16)
    by_product = w.reshape(rows // 16, 4, 2, 2, channels).transpose(1, 2).reshape(rows, channels)
    wide = torch.nn.functional.pad(by_product, (0, steps * 16 - channels))
    if wgmma:
        units = (
            wide.reshape(chunks, chunk, steps * 2, 8).transpose(1, 2).reshape(chunks, steps * 2, chunk * 8)
        )
        matrix = torch.nn.functional.pad(units, (0, 16)).reshape(chunks, -1)
    else:
        matrix = torch.nn.functional.pad(wide, (0, 8)).reshape(chunks, -1)
    pairs = affine[1].float().reshape(rows // 16, 4, 2, 1, 2).transpose(1, 2)
    shifts = pairs.expand(-1, -1, -1, 2, -1).reshape(chunks, -1).contiguous()
    taps = dw16.reshape(10, chunks, chunk).transpose(0, 1).reshape(-1)
    return torch.cat([torch.cat([matrix, shifts.view(w.dtype)], 1).reshape(-1), taps])


def splits(
    n: int, h: int, w: int, channels: int, processors: int = 132, capability: int = 90, **variant: int
) -> int:
    """How many blocks share an image, which is how many partial sums there are: what the GPU runs at once."""
    cut = {**tiles(channels, capability), **variant}
    count = -(-w // WIDE) * -(-h // cut["TALL"])
    together = max(1, cut["BLOCKS"] * processors // n)
    rounds = -(-count // together)
    return -(-count // rounds)  # no more blocks than the longest of them needs


def launch(
    x: Tensor,
    w: Tensor,
    affine: Tensor,
    dw16: Tensor,
    v: Tensor,
    sums: Tensor,
    *,
    centred: bool = True,
    capability: int = 90,
    packed: bool = True,
    label: str = "",
    **variant: int,
) -> Launch:
    """A call of the kernel; reference.stream_gram says what of. v must not overlap x.

    x, v (N, H, W, C) float16 or bfloat16; dw16 the taps and bias (10, 3 C) in that type; sums (splits, N, heads,
    ch * (ch + 2)) float32, partial: restort.kernels.fold adds them. w, affine and dw16 are packed here, once for all
    runs of the launch. `packed` and `variant` as in stream_ffn.
    """
    n, h, width, channels = x.shape
    heads = sums.shape[2]
    cut = cut_up(channels, heads, capability, variant)
    constants = {
        "C": channels,
        "HEADS": heads,
        "CENTRED": int(centred),
        "PACKED": int(packed),
        "GELU": 0,
        "BF16": int("bfloat16" in str(x.dtype)),
        **cut,
    }
    constants["SHARED"] = shared_bytes(channels, cut["TALL"], cut["CHUNK"], cut["WGMMA"])
    weights = pack(w, affine, dw16, cut["CHUNK"], cut["WGMMA"])
    pixels = n * h * width
    return Launch(
        KERNEL,
        {"x": x, "weights": weights, "v": v, "sums": sums},
        {"h": h, "width": width},
        constants,
        (sums.shape[0], n),
        warps=cut["WARPS"],
        flops=2 * pixels * channels * (3 * channels + 27 + channels // heads),
        moved=pixels * channels * 4 + sums.numel() * 4,
        label=label,
    )


def worthwhile(pixels: int, channels: int, heads: int, capability: int = 90) -> bool:
    """Whether one pass beats an expansion and a Gram kernel, which move 8 C numbers a pixel, and fits."""
    if channels not in (48, 96, 192) or channels // heads not in (48, 96):
        return False
    cut = tiles(channels, capability)
    need = shared_bytes(channels, cut["TALL"], cut["CHUNK"], cut["WGMMA"])
    return need <= SHARED_KIB.get(capability, 99) * 1024
