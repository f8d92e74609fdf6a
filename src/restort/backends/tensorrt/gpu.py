"""The GPU of this machine, asked of its driver alone: building for other machines needs no CUDA library."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import asdict, dataclass

from restort.utils.gpu import load_lazily

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """name, such as 'NVIDIA H100 80GB HBM3'; compute_capability '9.0'; driver: the CUDA version it gives, '12.8'."""

    name: str
    compute_capability: str
    driver: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def gpu(index: int = 0) -> Gpu | None:
    """The GPU that CUDA numbers `index`; None where there is no driver or no such GPU."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    number, device = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)

    def ask(kind: int) -> int:
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), kind, device):
            raise OSError
        return number.value

    load_lazily()
    try:
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index):
            return None
        if cuda.cuDeviceGetName(name, len(name), device) or cuda.cuDriverGetVersion(ctypes.byref(number)):
            return None
        version = number.value
        capability = f"{ask(MAJOR)}.{ask(MINOR)}"
    except (OSError, AttributeError):
        return None
    driver = f"{version // 1000}.{version % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), capability, driver)
