"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling and its weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import cdiv

Tensor = Any

SPEC = KernelSpec("gdfn_sm80", __file__, ("gelu.cuh",))
TILE_W, CHUNK = 16, 32
MAX_CHANNELS = 192  # a warp's row of 16 pixels stays in registers, and that is 96 of them


def tiling(channels: int, capability: int) -> dict[str, int]:
    """Return the macros of a tiling: 16 x TALL pixels by WARPS warps, BLOCKS per SM."""
    if channels > 96:  # a row of 16 pixels fills a warp's registers
        return {"WARPS": 8, "TALL": 8, "BLOCKS": 1}
    if shared_memory_limit(capability) < 100 << 10:
        return {"WARPS": 4, "TALL": 8, "BLOCKS": 1 if channels > 48 else 2}
    return {"WARPS": 4, "TALL": 8, "BLOCKS": 2}


def shared_bytes(channels: int, tall: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    pixels = (TILE_W + 2) * (tall + 2)
    row = cdiv(channels, 16) * 32 + 16
    columns = channels // 8
    out_row = columns * 16 + 16 + columns % 2 * 16
    start = max(cdiv(pixels, 16) * 16 * (CHUNK * 4 + 16), pixels * row)
    into = 2 * CHUNK * row + 2 * CHUNK * 2
    out = CHUNK * out_row + 10 * CHUNK * 4
    return max(start + 2 * into + 2 * out + tall * CHUNK * 32, start + into + channels * row)


def pack(w: Tensor, affine: Tensor, dw16: Tensor, out_w: Tensor) -> Tensor:
    """Return the weights as they lie in shared memory, (F / 32, bytes / 2) of w's type: a row for 32 hidden channels.

    Rows of W' for their gates and values, padded against bank conflicts; minus the shift of each as [2 channels] (2
    gates, 2 values); rows of the projection; taps and bias as [tap][2 channels] (2 gates, 2 values). The bias has the
    shifts in it, by the sum of the taps: what the convolution reads lacks them.
    """
    hidden, channels = out_w.shape
    chunks, width = hidden // CHUNK, cdiv(channels, 16) * 16
    rows = torch.nn.functional.pad(w, (0, width - channels)).reshape(2, chunks, CHUNK, width)
    rows = rows.transpose(0, 1).reshape(chunks, 2 * CHUNK, width)
    expansion = torch.nn.functional.pad(rows, (0, 8))
    shift, taps = affine[1].double(), dw16.double()
    bias = taps[9] + shift * taps[:9].sum(0)
    missing = -shift.reshape(2, chunks, CHUNK // 2, 2).permute(1, 2, 0, 3)
    back = out_w.reshape(chunks, CHUNK, channels)
    projection = torch.nn.functional.pad(back, (0, 8 + channels // 8 % 2 * 8))
    taps = torch.cat([taps[:9], bias[None]]).reshape(10, 2, chunks, CHUNK // 2, 2).permute(2, 0, 3, 1, 4)
    parts = (expansion, missing.to(w.dtype), projection, taps.to(w.dtype))
    halves = [part.reshape(chunks, -1).contiguous().view(torch.int16) for part in parts]
    return torch.cat(halves, 1).view(w.dtype)


def fits(channels: int, capability: int) -> bool:
    """Return whether the kernel takes so many channels and that GPU can run it."""
    if channels > MAX_CHANNELS:
        return False
    return SPEC.fits(shared_bytes(channels, tiling(channels, capability)["TALL"]), capability)


def launch(
    x: Tensor,
    v: Tensor,
    attention: Tensor,
    attention_b: Tensor | None,
    weights: Tensor,
    out_b: Tensor | None,
    out: Tensor,
    *,
    hidden: int,
    centred: bool = True,
    capability: int = 90,
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; reference.gdfn has the formula. `out` must not overlap x or v.

    x, v, out (N, H, W, C) float16 or bfloat16; `weights` from `pack`, of `hidden` channels; biases that are None are
    zeros, at no cost. The depthwise sums are kept in 16 bits, two to an instruction, and GELU comes from tanh.approx.
    `overrides` replaces macros of `tiling`.
    """
    channels = x.shape[3]
    chosen = {**tiling(channels, capability), **overrides}
    shared = shared_bytes(channels, chosen["TALL"])
    return launch_of(
        SPEC,
        x,
        v,
        attention,
        attention_b,
        {"image": weights},
        out_b,
        out,
        hidden,
        centred,
        chosen,
        shared,
        label,
    )


def launch_of(
    spec: KernelSpec,
    x: Tensor,
    v: Tensor,
    attention: Tensor,
    attention_b: Tensor | None,
    weights: dict[str, Tensor],
    out_b: Tensor | None,
    out: Tensor,
    hidden: int,
    centred: bool,
    macros: dict[str, int],
    shared: int,
    label: str,
) -> Launch:
    """Return a launch of sm80.cu or sm90.cu, which differ in `weights`, by the names of the kernel's arguments."""
    n, h, width, channels = x.shape
    pixels = n * h * width
    *_, last = weights.values()
    spare = last.view(torch.float32)  # for biases that are None, which are not read
    return spec.launch(
        {
            "x": x,
            "v": v,
            "matrix": attention,
            "attention_b": spare if attention_b is None else attention_b,
            **weights,
            "out_b": spare if out_b is None else out_b,
            "out": out,
        },
        {"h": h, "w_pixels": width},
        {
            "C": channels,
            "F": hidden,
            "CENTRED": int(centred),
            "ATTENTION_BIAS": int(attention_b is not None),
            "OUT_BIAS": int(out_b is not None),
            **macros,
        },
        (cdiv(width, TILE_W), cdiv(h, macros["TALL"]), n),
        dtype=x.dtype,
        shared=shared,
        flops=2 * pixels * (3 * channels * hidden + channels * channels + 18 * hidden),
        moved=pixels * channels * 2 * 3,
        label=label,
    )
