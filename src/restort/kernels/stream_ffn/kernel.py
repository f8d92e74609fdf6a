"""The binding of kernel.cu: how it is cut up, and when it is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restort.kernels.cuda import CudaKernel
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB

Tensor = Any

KERNEL = CudaKernel("stream_ffn", Path(__file__).with_name("kernel.cu"))
WIDE, CHUNK = 16, 32
MOST_CHANNELS = 192  # a warp's row of 16 pixels stays in registers, and that is 96 of them


def tiles(channels: int, capability: int) -> dict[str, int]:
    """How a picture is cut up: tiles of 16 x TALL pixels by WARPS warps, BLOCKS a multiprocessor."""
    if channels > 96:  # a row of 16 pixels fills a warp's registers
        return {"WARPS": 8, "TALL": 8, "BLOCKS": 1}
    if capability in (86, 89, 120):  # 100 KB a multiprocessor
        return {"WARPS": 4, "TALL": 8, "BLOCKS": 1 if channels > 48 else 2}
    return {"WARPS": 4, "TALL": 8, "BLOCKS": 2}


def shared_bytes(channels: int, tall: int) -> int:
    """Shared memory of a block; kernel.cu asserts the same number."""
    pixels = (WIDE + 2) * (tall + 2)
    row = -(-channels // 16) * 32 + 16
    columns = channels // 8
    out_row = columns * 16 + 16 + columns % 2 * 16
    start = max(-(-pixels // 16) * 16 * (CHUNK * 4 + 16), pixels * row)
    into = 2 * CHUNK * row + 2 * CHUNK * 2
    out = CHUNK * out_row + 10 * CHUNK * 4
    return max(start + 2 * into + 2 * out + tall * CHUNK * 32, start + into + channels * row)


def image(w: Tensor, affine: Tensor, dw16: Tensor, out_w: Tensor) -> Tensor:
    """The weights as they are to lie in shared memory, (F / 32, bytes / 2) of w's type: a row for 32 hidden channels.

    Rows of W' for their gates and values, padded against bank conflicts; minus the shift of each as [2 channels] (2
    gates, 2 values); rows of the projection; taps and bias as [tap][2 channels] (2 gates, 2 values). The bias has the
    shifts in it, by the sum of the taps: what the convolution reads lacks them.
    """
    import torch

    hidden, channels = out_w.shape
    chunks, steps = hidden // CHUNK, -(-channels // 16)
    wide = steps * 16
    rows = torch.nn.functional.pad(w, (0, wide - channels)).reshape(2, chunks, CHUNK, wide)
    rows = rows.transpose(0, 1).reshape(chunks, 2 * CHUNK, wide)
    expansion = torch.nn.functional.pad(rows, (0, 8))
    shift, taps = affine[1].double(), dw16.double()
    bias = taps[9] + shift * taps[:9].sum(0)
    missing = -shift.reshape(2, chunks, CHUNK // 2, 2).permute(1, 2, 0, 3)
    back = out_w.reshape(chunks, CHUNK, channels)
    projection = torch.nn.functional.pad(back, (0, 8 + channels // 8 % 2 * 8))
    taps = torch.cat([taps[:9], bias[None]]).reshape(10, 2, chunks, CHUNK // 2, 2).permute(2, 0, 3, 1, 4)
    parts = (expansion, missing.to(w.dtype), projection, taps.to(w.dtype))
    return torch.cat([part.reshape(chunks, -1).contiguous().view(torch.int16) for part in parts], 1).view(
        w.dtype
    )


def launch(
    x: Tensor,
    v: Tensor | None,
    fold: Tensor | None,
    fold_b: Tensor | None,
    w: Tensor,
    affine: Tensor,
    dw16: Tensor,
    out_w: Tensor,
    out_b: Tensor | None,
    out: Tensor,
    *,
    centred: bool = True,
    capability: int = 90,
    packed: bool = True,
    label: str = "",
    weights: Tensor | None = None,
    **variant: int,
) -> Launch:
    """A call of the kernel; reference.stream_ffn says what of. `out` must not overlap x or v.

    `weights` is `image` of w, affine, dw16 and out_w, made here if it is not given.
    x, v, out (N, H, W, C) float16 or bfloat16; dw16 the taps and bias (10, 2 F) in that type; biases that are None are
    zeros, at no cost. `packed`: the depthwise sums are kept in 16 bits, two to an instruction, and GELU comes from
    tanh.approx; otherwise both are float32. `variant` overrides `tiles`.
    """
    n, h, width, channels = x.shape
    hidden = out_w.shape[0]
    cut = {**tiles(channels, capability), **variant}
    brain = "bfloat16" in str(x.dtype)
    constants = {
        "C": channels,
        "F": hidden,
        "APPLY": int(v is not None),
        "CENTRED": int(centred),
        "FOLD_BIAS": int(fold_b is not None),
        "OUT_BIAS": int(out_b is not None),
        "PACKED": int(packed),
        "GELU": 0 if not packed else 1 if brain else 2,
        "BF16": int(brain),
        **cut,
    }
    constants["SHARED"] = shared_bytes(channels, cut["TALL"])
    if weights is None:
        weights = image(w, affine, dw16, out_w)
    pixels = n * h * width
    products = 3 * channels * hidden + (channels * channels if v is not None else 0)
    return Launch(
        KERNEL,
        {
            "x": x,
            "v": x if v is None else v,
            "fold": w if fold is None else fold,
            "fold_b": affine if fold_b is None else fold_b,
            "image": weights,
            "out_b": affine if out_b is None else out_b,
            "out": out,
        },
        {"h": h, "w_pixels": width},
        constants,
        (-(-width // WIDE), -(-h // cut["TALL"]), n),
        warps=cut["WARPS"],
        flops=2 * pixels * (products + 18 * hidden),
        moved=pixels * channels * 2 * (3 if v is not None else 2),
        label=label,
    )


def worthwhile(pixels: int, channels: int, capability: int = 90) -> bool:
    """Whether one pass beats an expansion and a projection kernel, which move 19 C numbers a pixel, and fits."""
    if channels > MOST_CHANNELS:
        return False
    cut = tiles(channels, capability)
    need = shared_bytes(channels, cut["TALL"])
    return need <= SHARED_KIB.get(capability, 99) * 1024
