"""Pictures as files have them, to and from the arrays of a network, on the device.

One byte a sample (two of 16-bit pictures) crosses the bus in each direction, instead of four. Every number is the one
that `restort.imaging.picture` computes on the host: the input by a table of the host's quotients, the output by the
same correctly rounded operations.
"""

from __future__ import annotations

import threading
import weakref
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from restort.runner import Array
from restort.tiling.padding import reflect_index
from restort.utils.integers import round_up
from restort.utils.memory import available_memory

Tensor = Any


def on_device(pixels: Array, device: Any) -> Tensor:
    """Copy uint8 or uint16 (H, W, C) to the device; 16 bits arrive as int16 of the same bits.

    By way of page-locked memory, from which the GPU copies by itself, in the order of the current stream.
    """
    dtype = torch.uint8 if pixels.itemsize == 1 else torch.int16
    staged = torch.empty(pixels.shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.copyto(staged.numpy().view(pixels.dtype), pixels)
    return staged.to(device, non_blocking=True)


def padded_shape(pixels: Array, multiple: int) -> tuple[int, int, int, int]:
    """The network's input for (H, W, C): (1, C, H, W), both edges rounded up to `multiple`."""
    height, width, channels = pixels.shape
    return 1, channels, round_up(height, multiple), round_up(width, multiple)


def to_planes(raw: Tensor, height: int, width: int) -> Tensor:
    """Convert the result of `on_device` to float32 (1, C, height, width) in [0, 1], padded by reflection."""
    for axis, padded in ((0, height), (1, width)):
        if raw.shape[axis] != padded:
            index = torch.from_numpy(reflect_index(raw.shape[axis], padded).astype(np.int64)).to(raw.device)
            raw = raw.index_select(axis, index)
    numbers = raw.to(torch.int32)
    if raw.dtype == torch.int16:
        numbers &= 0xFFFF
    table = _quotients(255 if raw.dtype == torch.uint8 else 65535, raw.device)
    return table.index_select(0, numbers.flatten()).view(raw.shape).permute(2, 0, 1)[None]


def to_pixels(y: Tensor, height: int, width: int, bits: int) -> Tensor:
    """Clip and round a result (1, C, H, W) to (height, width, C) of uint8, or int16 of a uint16's bits. Changes y."""
    values = y[0, :, :height, :width].clamp_(0, 1).mul_(255 if bits == 8 else 65535).round_()
    whole = values.to(torch.uint8) if bits == 8 else values.to(torch.int32).to(torch.int16)
    return whole.permute(1, 2, 0).contiguous()


@lru_cache(maxsize=8)
def _quotients(peak: int, device: Any) -> Tensor:
    """n / peak of n = 0 ... peak, float32, as NumPy divides: PyTorch multiplies by the reciprocal on GPUs."""
    return torch.from_numpy(np.arange(peak + 1, dtype=np.float32) / np.float32(peak)).to(device)


class HostResults:
    """Memory of the host that results are copied into.

    It is page-locked, so that the GPU writes it directly and the caller gets it without another copy. Of that kind at
    most `limit` bytes are lent at a time (default: 2 GiB, or an eighth of the free memory); a caller who keeps more
    results gets ordinary memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit, self._lent, self._lock = limit, 0, threading.Lock()

    def take(self, shape: tuple[int, ...], bits: int) -> tuple[Tensor, Array]:
        """Return a tensor to copy into (uint8 or int16), and the array (uint8 or uint16) over the same memory."""
        size = int(np.prod(shape)) * bits // 8
        with self._lock:
            if self._limit is None:
                self._limit = min(1 << 31, available_memory() // 8)
            pinned = self._lent + size <= self._limit
            self._lent += size if pinned else 0
        try:
            tensor = torch.empty(shape, dtype=torch.uint8 if bits == 8 else torch.int16, pin_memory=pinned)
        except BaseException:
            self._give_back(size if pinned else 0)
            raise
        array = tensor.numpy()
        if pinned:
            weakref.finalize(array, self._give_back, size)
        return tensor, array if bits == 8 else array.view(np.uint16)

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._lent -= size
