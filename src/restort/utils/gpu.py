"""Whether an NVIDIA GPU can be used through PyTorch and Triton, found without importing either of them.

`trouble()` looks at what is installed, then asks the driver itself; it takes milliseconds where something lacks and
about a tenth of a second where nothing does. `deep_trouble()` also loads PyTorch and lets it see the GPU.
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

LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 in the matrix units, asynchronous copies
LEAST_TORCH = (2, 7)
LEAST_TRITON = (3, 3)

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_INSTALL = "pip install 'restort[fused]'"
_CUDA_BUILD = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
_OTHER = "use --backend auto, onnxruntime or torch"
_UPDATE = "update the NVIDIA driver (https://www.nvidia.com/drivers)"


@dataclass(frozen=True)
class Trouble:
    """What keeps the GPU from being used, and what helps; both continue a sentence, without a full stop."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows: its name, compute capability, and the driver's CUDA, such as (13, 0)."""

    name: str
    capability: tuple[int, int]
    cuda: tuple[int, int]


def load_lazily() -> None:
    """Has the driver load each kernel when it is first used. Call it before anything of CUDA starts.

    That is usual since CUDA 12.2; before, TensorRT needed ten seconds and gigabytes for kernels that never ran.
    A CUDA_MODULE_LOADING in the environment stays.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")


def trouble() -> Trouble | None:
    """None where everything needed is there, else the first thing that is not."""
    found = software_trouble()
    if found is not None:
        return found
    gpu = look()
    if isinstance(gpu, Trouble):
        return gpu
    if gpu.capability < LEAST_CAPABILITY:
        return too_old(gpu.name, gpu.capability)
    built = torch_build().get("cuda")
    if built and gpu.cuda[0] < int(built.split(".")[0]):
        return Trouble(
            f"the NVIDIA driver is for CUDA {gpu.cuda[0]}.{gpu.cuda[1]} and PyTorch is built for CUDA {built}",
            f"{_UPDATE}, or install a PyTorch for CUDA {gpu.cuda[0]}",
        )
    return None


def deep_trouble() -> Trouble | None:
    """`trouble()`, and whether PyTorch agrees. Imports PyTorch where the rest is in order."""
    found = trouble()
    if found is not None:
        return found
    try:
        import torch

        if not torch.cuda.is_available():
            return Trouble(
                "PyTorch cannot use the GPU", f"{_UPDATE}, or install PyTorch again: {_CUDA_BUILD}"
            )
        capability = torch.cuda.get_device_capability()
        if capability < LEAST_CAPABILITY:
            return too_old(torch.cuda.get_device_name(), capability)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Trouble(
            f"PyTorch fails on the GPU ({text})", f"{_UPDATE}, or install PyTorch again: {_CUDA_BUILD}"
        )
    return None


def software_trouble() -> Trouble | None:
    """Of the libraries alone."""
    if importlib.util.find_spec("torch") is None:
        return Trouble("PyTorch is not installed", _INSTALL)
    build = torch_build()
    if build.get("hip"):
        return Trouble("PyTorch is installed for AMD GPUs", _CUDA_BUILD)
    if "version" in build and not build.get("cuda"):
        return Trouble(f"PyTorch is installed without CUDA ({build['version']})", _CUDA_BUILD)
    if _version("torch") < LEAST_TORCH:
        return Trouble(
            f"PyTorch {_text('torch')} is too old, {_dotted(LEAST_TORCH)} is needed", f"{_INSTALL} -U"
        )
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return Trouble("Triton is not installed", f"pip install {package}")
    if _version("triton") < LEAST_TRITON:
        return Trouble(
            f"Triton {_text('triton')} is too old, {_dotted(LEAST_TRITON)} is needed", f"{_INSTALL} -U"
        )
    return None


def too_old(name: str, capability: tuple[int, int]) -> Trouble:
    """The GPU lacks what the kernels need."""
    return Trouble(
        f"{name} has compute capability {_dotted(capability)}; {_dotted(LEAST_CAPABILITY)} or newer is needed "
        "(A100, RTX 30 and later)",
        _OTHER,
    )


def torch_build() -> dict[str, str | None]:
    """What the installed PyTorch says of itself in torch/version.py: 'version', 'cuda' ('13.0' or None), 'hip'."""
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


def look() -> Gpu | Trouble:
    """Asks the driver, through its own library; PyTorch is not needed."""
    driver = _driver()
    if driver is None:
        return Trouble(
            "no NVIDIA driver is loaded",
            "install the NVIDIA driver (https://www.nvidia.com/drivers); start a container with --gpus all",
        )
    load_lazily()
    status = driver.cuInit(0)
    count = ctypes.c_int()
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status == 100 or (status == 0 and count.value == 0):  # CUDA_ERROR_NO_DEVICE
        return Trouble("the driver shows no NVIDIA GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if status == 803:  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        return Trouble("the NVIDIA driver and its library are of different versions", "restart the machine")
    if status != 0:
        return Trouble(f"the NVIDIA driver fails (CUDA error {status})", f"restart the machine, or {_UPDATE}")
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
    """The driver's library, None where there is none."""
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
    """(major, minor); large where it is not known, as for a build from source."""
    numbers = re.match(r"(\d+)\.(\d+)", _text(package))
    return (int(numbers[1]), int(numbers[2])) if numbers else (99, 0)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
