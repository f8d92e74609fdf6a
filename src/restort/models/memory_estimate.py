"""How much memory a network needs per pixel."""

from __future__ import annotations

from restort.models.spec import ElanSpec, Spec

_FLOAT = 4


def bytes_per_pixel(spec: Spec) -> int:
    """An estimate of the peak memory, in bytes, per pixel of the input, for float32 on a CPU.

    The widest place of a network decides. Restormer: the gated feed-forward network at full resolution,
    whose input and output of the depthwise convolution (twice the hidden width each) and gated product live
    at the same time, beside the two skip connections. ELAN: the scores of the largest window, size^2 numbers
    per pixel before and after the softmax, beside queries, values and the residuals. Output and its copies
    are added, and a quarter for what allocators keep.
    """
    if isinstance(spec, ElanSpec):
        widest = 2 * max(spec.window_sizes) ** 2 + (6 + 2 * spec.expand) * spec.channels
    else:
        channels = 2 * spec.dim
        widest = 10 * spec.hidden(channels) + 6 * channels
    ends = spec.in_channels + 3 * spec.out_channels * spec.scale**2
    return round(1.25 * _FLOAT * (widest + ends))
