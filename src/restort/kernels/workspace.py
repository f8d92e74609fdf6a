"""Memory for intermediate results, planned once for a shape: buffers that are not alive together share bytes."""

from __future__ import annotations

import bisect
import math
from typing import Any

from restort.utils.integers import round_up

ALIGNMENT = 256  # bytes; what CUDA's own allocator gives


class Workspace:
    """Plans buffers first, then makes one allocation for all of them.

        workspace = Workspace()
        a = workspace.take((1, 8, 8, 48), torch.float16)
        workspace.release(a)            # after its last reader has been planned
        workspace.allocate(device)
        workspace.tensor(a)

    Sharing is safe because launches are planned in the order in which they run, on one stream.
    """

    def __init__(self) -> None:
        self._holes: list[tuple[int, int]] = []  # (offset, bytes), sorted, of released memory below `bytes`
        self._buffers: list[tuple[int, tuple[int, ...], Any]] = []
        self._live: dict[int, tuple[int, int]] = {}
        self.bytes = 0
        self._memory: Any = None

    def take(self, shape: tuple[int, ...], dtype: Any) -> int:
        """Plan a buffer and return its number."""
        size = round_up(math.prod(shape) * dtype.itemsize, ALIGNMENT)
        offset = self._find(size)
        self._buffers.append((offset, shape, dtype))
        number = len(self._buffers) - 1
        self._live[number] = (offset, size)
        return number

    def _find(self, size: int) -> int:
        """Return the offset of the smallest hole that is large enough, else of new memory at the end."""
        fitting = [(length, i) for i, (_, length) in enumerate(self._holes) if length >= size]
        if fitting:
            length, i = min(fitting)
            offset, _ = self._holes.pop(i)
            if length > size:
                bisect.insort(self._holes, (offset + size, length - size))
            return offset
        if self._holes and sum(self._holes[-1]) == self.bytes:  # the last hole touches the end: extend it
            offset, _ = self._holes.pop()
        else:
            offset = self.bytes
        self.bytes = offset + size
        return offset

    def release(self, number: int) -> None:
        """Allow later buffers to use the bytes of this one, which no later launch reads."""
        offset, size = self._live.pop(number)
        bisect.insort(self._holes, (offset, size))
        merged: list[tuple[int, int]] = []
        for start, length in self._holes:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._holes = merged

    def allocate(self, device: Any) -> None:
        """Allocate the memory: one tensor of `bytes` bytes."""
        import torch

        self._memory = torch.empty(max(self.bytes, 1), dtype=torch.uint8, device=device)

    def tensor(self, number: int) -> Any:
        """Return buffer `number` as a tensor, after `allocate`."""
        offset, shape, dtype = self._buffers[number]
        size = math.prod(shape) * dtype.itemsize
        return self._memory[offset : offset + size].view(dtype).view(shape)
