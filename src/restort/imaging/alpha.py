"""Alpha of a picture: colours under transparent pixels for the network, and alpha at the size of the result."""

from __future__ import annotations

import numpy as np

from restort.utils.array_types import Array, Float32

FLAT_RADIUS = 3
"""Pixels of the source around a pixel that must have its alpha for the result to keep this alpha exactly."""


def fill_transparent(colours: Float32, alpha: Array) -> Float32:
    """Replace the colours of fully transparent pixels by a smooth continuation of the visible ones: (C, H, W).

    Colours under alpha 0 are arbitrary, often black, and a network would draw them into the visible edge. Averages of
    the visible pixels over growing squares (a pyramid) fill the gaps from the nearest ones outwards. Pixels with any
    alpha keep their colour. Returns `colours` itself if all pixels or none are visible.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return colours
    return np.where(visible, colours, _pull_push(colours * visible, visible.astype(np.float32)))


def _pull_push(weighted: Float32, weight: Float32) -> Float32:
    """Divide sums (C, H, W) by weights (H, W); where the weight is 0, take the average of a coarser level."""
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
    """Sum squares of 2 x 2: (..., H, W) with even H and W -> (..., H / 2, W / 2)."""
    return x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]


def is_constant(alpha: Array) -> bool:
    """Return whether all pixels are equally opaque."""
    return bool((alpha == alpha.flat[0]).all())


def flat_pixels(alpha: Array, radius: int) -> Array:
    """Mark the pixels whose neighbourhood has one alpha: (H, W) -> (H, W) bool.

    The neighbourhood is the square of `2 * radius + 1` pixels around the pixel, cut off at the border.
    """
    lowest = highest = alpha
    for axis in (0, 1):
        lowest = _extreme(np.minimum, lowest, radius, axis)
        highest = _extreme(np.maximum, highest, radius, axis)
    return np.asarray(lowest == highest)


def _extreme(of_two: np.ufunc, values: Array, radius: int, axis: int) -> Array:
    """The minimum or maximum over a sliding window of `2 * radius + 1` along one axis; same shape."""
    result: Array = values.copy()
    towards = np.moveaxis(result, axis, 0)  # a view: writing to it fills `result`
    source = np.moveaxis(values, axis, 0)
    for shift in range(1, min(radius, len(source) - 1) + 1):
        of_two(towards[shift:], source[:-shift], out=towards[shift:])
        of_two(towards[:-shift], source[shift:], out=towards[:-shift])
    return result


def keep_flat_alpha(restored: Array, alpha: Array, scale: int) -> Array:
    """Put the source's alpha back where it is flat: (H * scale, W * scale) after the network, changed in place.

    A network returns 254 for a wide field of 255 here and there, and bends values near the border of a picture,
    where its convolutions see zeros. An opaque field must stay opaque and an empty one empty.
    """
    flat = flat_pixels(alpha, FLAT_RADIUS)
    for row in range(len(alpha)):  # a source row at a time, to keep the copies small
        rows = restored[row * scale : (row + 1) * scale]
        rows[:, flat[row].repeat(scale)] = alpha[row, flat[row]].repeat(scale)
    return restored


def resize_alpha(alpha: Array, scale: int) -> Array:
    """Enlarge by cubic interpolation: (H, W) -> (H * scale, W * scale), same dtype. Scale 1 returns `alpha` itself."""
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
