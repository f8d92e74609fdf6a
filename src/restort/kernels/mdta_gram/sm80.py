"""The launch of sm80.cu (compute capability 8.0 and higher): its tiling and its weights."""

from __future__ import annotations

from typing import Any

from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.kernel_spec import KernelSpec
from restort.kernels.launch import Launch
from restort.utils.integers import cdiv, even_workers

Tensor = Any

SPEC = KernelSpec("mdta_gram_sm80", __file__)
TILE_W = 16


def tiling(channels: int, capability: int) -> dict[str, int]:
    """Return the macros of a tiling: 16 x TALL pixels by WARPS warps, CHUNK channels a step, BLOCKS per SM.

    PART_K: columns of a warp's part of the Gram matrix, which has 48 rows.
    """
    base = {"WARPS": 4, "TALL": 8, "CHUNK": 48, "PART_K": 48 if channels <= 48 else 24}
    if channels > 96:
        return {**base, "WARPS": 12, "PART_K": 16, "BLOCKS": 1}
    if shared_memory_limit(capability) < 100 << 10:
        return {**base, "CHUNK": 48 if channels <= 48 else 16, "BLOCKS": 1}
    return {**base, "BLOCKS": 2}


def fitted_tiling(channels: int, heads: int, capability: int, overrides: dict[str, int]) -> dict[str, int]:
    """Return `tiling` with `overrides`, and PART_K and WARPS such that every warp gets as many parts."""
    chosen = {**tiling(channels, capability), **overrides}

    def shared_out(warps: int, part_k: int) -> bool:
        return warps % (channels // heads // 48 * (channels // part_k)) == 0

    if not shared_out(chosen["WARPS"], chosen["PART_K"]):
        chosen["PART_K"] = 24 if shared_out(chosen["WARPS"], 24) else 48
    if not shared_out(chosen["WARPS"], chosen["PART_K"]):
        chosen["WARPS"] = 8
    return chosen


def shared_bytes(channels: int, tall: int, chunk: int) -> int:
    """Return the shared memory of a block; sm80.cu asserts the same number."""
    pixels = (TILE_W + 2) * (tall + 2)
    row = cdiv(channels, 16) * 32 + 16
    products = TILE_W * tall * (4 * channels + 16)
    rest = pixels * (2 * chunk + 16) + chunk * (row + 8) + 10 * chunk * 2
    over = pixels * row <= products and channels // chunk > 1  # the next pixels lie where q and k were
    return products + 16 + 2 * rest + (0 if over else pixels * row)


def pack(w: Tensor, affine: Tensor, dw16: Tensor, chunk: int) -> Tensor:
    """Return the weights as they lie in shared memory, one 16-bit number after another, in the type of w.

    Of every chunk of channels: the rows of w with their padding, then the shifts affine[1], as float32, each twice
    over; after that, of every chunk: the taps and the bias. Rows 2 j, 2 j + 1 of 16 are channels 4 j, 4 j + 1 and rows
    2 j + 8, 2 j + 9 the next two, so that the four that a thread gets from two products are neighbours.
    """
    import torch

    rows, channels = w.shape
    chunks, steps = rows // chunk, cdiv(channels, 16)
    by_product = w.reshape(rows // 16, 4, 2, 2, channels).transpose(1, 2).reshape(rows, channels)
    matrix = torch.nn.functional.pad(by_product, (0, steps * 16 - channels + 8)).reshape(chunks, -1)
    pairs = affine[1].float().reshape(rows // 16, 4, 2, 1, 2).transpose(1, 2)
    shifts = pairs.expand(-1, -1, -1, 2, -1).reshape(chunks, -1).contiguous()
    taps = dw16.reshape(10, chunks, chunk).transpose(0, 1).reshape(-1)
    return torch.cat([torch.cat([matrix, shifts.view(w.dtype)], 1).reshape(-1), taps])


def splits(
    n: int, h: int, w: int, channels: int, num_sms: int = 132, capability: int = 90, **overrides: int
) -> int:
    """Return how many blocks share an image, which is the number of partial sums: as many as the GPU runs at once."""
    chosen = {**tiling(channels, capability), **overrides}
    tiles = cdiv(w, TILE_W) * cdiv(h, chosen["TALL"])
    together = max(1, chosen["BLOCKS"] * num_sms // n)
    return even_workers(tiles, together)


def fits(channels: int, heads: int, capability: int) -> bool:
    """Return whether the kernel takes such a block and that GPU can run it."""
    if channels not in (48, 96, 192) or channels // heads not in (48, 96):
        return False
    chosen = tiling(channels, capability)
    return SPEC.fits(shared_bytes(channels, chosen["TALL"], chosen["CHUNK"]), capability)


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
    label: str = "",
    **overrides: int,
) -> Launch:
    """Return a launch; reference.mdta_gram has the formula. v must not overlap x.

    x, v (N, H, W, C) float16 or bfloat16; dw16 the taps and bias (10, 3 C) in that type; sums (splits, N, heads,
    ch * (ch + 2)) float32, partial: restort.kernels.attention_matrix adds them. w, affine and dw16 are packed here,
    once for all runs of the launch. `overrides` replaces macros of `tiling`.
    """
    channels = x.shape[3]
    chosen = fitted_tiling(channels, sums.shape[2], capability, overrides)
    weights = {"weights": pack(w, affine, dw16, chosen["CHUNK"])}
    shared = shared_bytes(channels, chosen["TALL"], chosen["CHUNK"])
    return launch_of(SPEC, x, weights, v, sums, centred, chosen, shared, label)


def launch_of(
    spec: KernelSpec,
    x: Tensor,
    weights: dict[str, Tensor],
    v: Tensor,
    sums: Tensor,
    centred: bool,
    macros: dict[str, int],
    shared: int,
    label: str,
) -> Launch:
    """Return a launch of sm80.cu or sm90.cu, which differ in `weights`, by the names of the kernel's arguments."""
    n, h, width, channels = x.shape
    heads, pixels = sums.shape[2], n * h * width
    return spec.launch(
        {"x": x, **weights, "v": v, "sums": sums},
        {"h": h, "width": width},
        {"C": channels, "HEADS": heads, "CENTRED": int(centred), **macros},
        (sums.shape[0], n),
        dtype=x.dtype,
        shared=shared,
        flops=2 * pixels * channels * (3 * channels + 27 + channels // heads),
        moved=pixels * channels * 4 + sums.numel() * 4,
        label=label,
    )
