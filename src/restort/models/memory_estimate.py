"""An estimate of the memory that a network needs per pixel."""

from __future__ import annotations

from restort.models.spec import ElanSpec, Spec

_FLOAT = 4


def bytes_per_pixel(spec: Spec) -> int:
    """Estimate the peak memory per pixel of the input, in bytes, for float32 on a CPU.

    The estimate is of the layer with the largest activations. Restormer: GDFN at full resolution, where input and
    output of the depthwise convolution (twice the hidden channels each) and the gated product live at once, beside the
    two skip connections. ELAN: the scores of the largest window, size^2 numbers per pixel before and after softmax,
    beside queries, values and residuals. The output and its copies are added, and a quarter for allocators.
    """
    if isinstance(spec, ElanSpec):
        widest = 2 * max(spec.window_sizes) ** 2 + (6 + 2 * spec.expand) * spec.channels
    else:
        channels = 2 * spec.dim
        widest = 10 * spec.hidden(channels) + 6 * channels
    ends = spec.in_channels + 3 * spec.out_channels * spec.scale**2
    return round(1.25 * _FLOAT * (widest + ends))
