"""A fake of the NVIDIA driver's library, as restort.utils.gpu queries it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from restort.utils.gpu import Gpu


class Driver:
    """A driver whose calls return `status`; it shows `count` GPUs of one kind."""

    def __init__(
        self,
        status: int = 0,
        count: int = 1,
        capability: tuple[int, int] = (9, 0),
        cuda: int = 13000,
        name: str = "NVIDIA H100",
    ) -> None:
        self.status, self.count, self.capability, self.cuda, self.name = status, count, capability, cuda, name

    @staticmethod
    def of(gpu: Gpu | None) -> Driver | None:
        """The driver that shows `gpu`; None for no driver."""
        if gpu is None:
            return None
        return Driver(capability=gpu.capability, cuda=1000 * gpu.cuda[0] + 10 * gpu.cuda[1], name=gpu.name)

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.count
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = self.cuda
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int))[0] = self.capability[attribute - 75]
        return 0


def use_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Callable[[], Gpu | None]) -> None:
    """Let this machine have the GPU that `gpu()` returns, or none."""
    monkeypatch.setattr("restort.utils.gpu._driver", lambda: Driver.of(gpu()))
