"""How much memory a network needs per pixel, and how much there is."""

from __future__ import annotations

from pathlib import Path

from restort.models.spec import ElanSpec, Spec

_CGROUP = Path("/sys/fs/cgroup")
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


def available_memory() -> int:
    """Bytes of memory that can be had now without swapping, within the limit of a container if there is
    one."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    free = int(psutil.virtual_memory().available)
    left = _cgroup_left()
    return free if left is None else min(free, left)


def _cgroup_left() -> int | None:
    """What the control group (version 2 or 1) leaves of its limit, or None where there is no limit."""
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (_CGROUP / limit_name).read_text().strip()
            usage = (_CGROUP / usage_name).read_text().strip()
            if limit.isdigit() and int(limit) < 1 << 60:
                return max(int(limit) - int(usage), 0)
        except (OSError, ValueError):
            continue
    return None
