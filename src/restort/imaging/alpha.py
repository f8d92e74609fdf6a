"""What a network needs to know of transparency, and alpha at another size."""

from __future__ import annotations

import numpy as np

from restort.utils.array_types import Array, Float32


def fill_transparent(colours: Float32, alpha: Array) -> Float32:
    """(C, H, W) with the colours of fully transparent pixels replaced by a smooth continuation of the
    visible ones.

    What hides under alpha 0 is arbitrary, often black, and a network would draw it into the visible edge.
    Averages of the visible pixels over ever larger squares (a pyramid) fill the gaps from the nearest ones
    outwards. Pixels with any alpha keep their colour. Returned as it is where all or nothing is visible.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return colours
    return np.where(visible, colours, _pull_push(colours * visible, visible.astype(np.float32)))


def _pull_push(weighted: Float32, weight: Float32) -> Float32:
    """(C, H, W) sums and (H, W) weights -> (C, H, W) averages, taken from a coarser level where the weight
    is 0."""
    known = weight > 0
    average = (weighted / np.where(known, weight, 1)).astype(np.float32)
    if known.all() or weight.size == 1:
        return average
    height, width = weight.shape
    even = ((0, height % 2), (0, width % 2))
    coarse_weight = _halve(np.pad(weight, even))
    coarse = _pull_push(_halve(np.pad(weighted, ((0, 0), *even))), coarse_weight)
    finer = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
    return np.where(known, average, finer)


def _halve(x: Array) -> Array:
    """(..., H, W) with even H and W -> (..., H / 2, W / 2): sums over squares of 2 x 2."""
    return x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]


def is_constant(alpha: Array) -> bool:
    """Whether all pixels are equally opaque."""
    return bool((alpha == alpha.flat[0]).all())


def resize_alpha(alpha: Array, scale: int) -> Array:
    """(H, W) -> (H * scale, W * scale) by cubic interpolation, same type; as it is for scale 1."""
    from PIL import Image

    if scale == 1:
        return alpha
    height, width = alpha.shape[0] * scale, alpha.shape[1] * scale
    if is_constant(alpha):
        return np.full((height, width), alpha.flat[0], alpha.dtype)
    # Pillow and not libvips, whose enlargement is off by up to half a pixel of the output.
    larger = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    values: Array = np.rint(np.clip(np.asarray(larger), 0, np.iinfo(alpha.dtype).max))
    return values.astype(alpha.dtype)
