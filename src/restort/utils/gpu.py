"""The NVIDIA GPU of this machine, by its driver, and whether PyTorch and Triton can use it; neither is imported.

`check_available()` looks at what is installed, then queries the driver. It takes milliseconds where something is
missing and about a tenth of a second where nothing is. `check_usable()` also imports PyTorch and lets it see the GPU.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.utils.extras import install_command

LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 in the matrix units, asynchronous copies
LEAST_TORCH = (2, 7)
LEAST_TRITON = (3, 3)

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_INSTALL = install_command("fused")
_CUDA_BUILD = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
_OTHER = "use --backend auto, onnxruntime or torch"
_UPDATE = "update the NVIDIA driver (https://www.nvidia.com/drivers)"


@dataclass(frozen=True)
class Unavailable:
    """Why something cannot be used, and the remedy; both are parts of a sentence, without a full stop."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows.

    name        'NVIDIA H100 80GB HBM3'
    capability  its compute capability, (9, 0)
    cuda        the CUDA version of the driver, (13, 0)
    """

    name: str
    capability: tuple[int, int]
    cuda: tuple[int, int]

    @property
    def compute_capability(self) -> str:
        """'9.0'"""
        return _dotted(self.capability)

    @property
    def driver(self) -> str:
        """The CUDA version of the driver, '13.0'."""
        return _dotted(self.cuda)

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "compute_capability": self.compute_capability, "driver": self.driver}


def load_lazily() -> None:
    """Make the driver load each kernel when it is first used. Call it before CUDA is initialised.

    This is the default since CUDA 12.2; before, TensorRT took ten seconds and gigabytes for kernels that never ran. A
    CUDA_MODULE_LOADING of the user is kept.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")


def check_available() -> Unavailable | None:
    """Return the first thing that is missing to run fused kernels; None where nothing is."""
    found = check_software()
    if found is not None:
        return found
    gpu = query_gpu()
    if isinstance(gpu, Unavailable):
        return gpu
    if gpu.capability < LEAST_CAPABILITY:
        return too_old(gpu.name, gpu.capability)
    built = torch_build().get("cuda")
    if built and gpu.cuda[0] < int(built.split(".")[0]):
        return Unavailable(
            f"the NVIDIA driver is for CUDA {gpu.cuda[0]}.{gpu.cuda[1]} and PyTorch is built for CUDA {built}",
            f"{_UPDATE}, or install a PyTorch for CUDA {gpu.cuda[0]}",
        )
    return None


def check_usable() -> Unavailable | None:
    """Like `check_available`, and import PyTorch to see whether it can use the GPU."""
    found = check_available()
    if found is not None:
        return found
    try:
        import torch

        if not torch.cuda.is_available():
            return Unavailable(
                "PyTorch cannot use the GPU", f"{_UPDATE}, or install PyTorch again: {_CUDA_BUILD}"
            )
        capability = torch.cuda.get_device_capability()
        if capability < LEAST_CAPABILITY:
            return too_old(torch.cuda.get_device_name(), capability)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Unavailable(
            f"PyTorch fails on the GPU ({text})", f"{_UPDATE}, or install PyTorch again: {_CUDA_BUILD}"
        )
    return None


def check_software() -> Unavailable | None:
    """Return the first library that is missing or too old; None where none is."""
    if importlib.util.find_spec("torch") is None:
        return Unavailable("PyTorch is not installed", _INSTALL)
    build = torch_build()
    if build.get("hip"):
        return Unavailable("PyTorch is installed for AMD GPUs", _CUDA_BUILD)
    if "version" in build and not build.get("cuda"):
        return Unavailable(f"PyTorch is installed without CUDA ({build['version']})", _CUDA_BUILD)
    if _version("torch") < LEAST_TORCH:
        return Unavailable(
            f"PyTorch {_text('torch')} is too old, {_dotted(LEAST_TORCH)} is needed", f"{_INSTALL} -U"
        )
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return Unavailable("Triton is not installed", f"pip install {package}")
    if _version("triton") < LEAST_TRITON:
        return Unavailable(
            f"Triton {_text('triton')} is too old, {_dotted(LEAST_TRITON)} is needed", f"{_INSTALL} -U"
        )
    return None


def too_old(name: str, capability: tuple[int, int]) -> Unavailable:
    """The answer for a GPU below LEAST_CAPABILITY."""
    return Unavailable(
        f"{name} has compute capability {_dotted(capability)}; {_dotted(LEAST_CAPABILITY)} or newer is needed "
        "(A100, RTX 30 and later)",
        _OTHER,
    )


def torch_build() -> dict[str, str | None]:
    """Read torch/version.py of the installed PyTorch: 'version', 'cuda' ('13.0' or None), 'hip'."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return {}
    try:
        text = (Path(spec.origin).parent / "version.py").read_text("utf-8")
    except OSError:
        return {}
    names = {"__version__": "version", "cuda": "cuda", "hip": "hip"}
    found: dict[str, str | None] = {}
    for name, value in re.findall(r"^(\w+)\s*(?::[^=]*)?=\s*(None|'[^']*'|\"[^\"]*\")", text, re.MULTILINE):
        if name in names:
            found[names[name]] = None if value == "None" else value.strip("'\"")
    return found


def find_gpu() -> Gpu | None:
    """Return the first GPU of this machine, or None."""
    found = query_gpu()
    return found if isinstance(found, Gpu) else None


def query_gpu() -> Gpu | Unavailable:
    """Query the driver for its first GPU, through its own library."""
    driver = _driver()
    if driver is None:
        return Unavailable(
            "no NVIDIA driver is loaded",
            "install the NVIDIA driver (https://www.nvidia.com/drivers); start a container with --gpus all",
        )
    load_lazily()
    status = driver.cuInit(0)
    count = ctypes.c_int()
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status == 100 or (status == 0 and count.value == 0):  # CUDA_ERROR_NO_DEVICE
        return Unavailable("the driver shows no NVIDIA GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if status == 803:  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        return Unavailable(
            "the NVIDIA driver and its library are of different versions", "restart the machine"
        )
    if status != 0:
        return Unavailable(
            f"the NVIDIA driver fails (CUDA error {status})", f"restart the machine, or {_UPDATE}"
        )
    device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    numbers = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, 256, device)
    for number, attribute in zip(numbers, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    cuda = version.value // 1000, version.value % 1000 // 10
    return Gpu(name.value.decode("utf-8", "replace"), (numbers[0].value, numbers[1].value), cuda)


def _driver() -> Any:
    """Load the driver's library; None where it is absent."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _text(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _version(package: str) -> tuple[int, ...]:
    """(major, minor) of an installed package; (99, 0) where unknown, as for a build from source."""
    numbers = re.match(r"(\d+)\.(\d+)", _text(package))
    return (int(numbers[1]), int(numbers[2])) if numbers else (99, 0)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
