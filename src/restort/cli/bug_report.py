"""`restort doctor --bug-report`: this machine in the fields of NVIDIA's form for bug reports.

The form: https://github.com/NVIDIA/TensorRT/blob/main/.github/ISSUE_TEMPLATE/bug_report.md. No names of users, hosts or
folders are in the answer.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from restort.utils.gpu import Unavailable, query_gpu, torch_build
from restort.version import __version__

DRIVER = Path("/proc/driver/nvidia/version")
CONTAINERS = {"/.dockerenv": "Docker", "/run/.containerenv": "Podman", "/singularity": "Singularity"}
NONE = "not installed"


def report() -> str:
    """The section "Environment" of the form, filled in, as Markdown."""
    gpu = query_gpu()
    if isinstance(gpu, Unavailable):
        name, cuda = f"none ({gpu.reason})", "unknown"
    else:
        name, cuda = (
            f"{gpu.name}, compute capability {gpu.compute_capability}",
            f"{gpu.driver} (of the driver)",
        )
    toolkit = _packages(r"nvidia-cuda-runtime(-cu\d+)?|cuda-toolkit")
    lines = ["## Environment", ""]
    for field, value in (
        ("TensorRT Version", _packages(r"tensorrt(-rtx|-lean)?(-cu\d+)?") or NONE),
        ("NVIDIA GPU", name),
        ("NVIDIA Driver Version", driver_version()),
        ("CUDA Version", f"{cuda}, {toolkit}" if toolkit else cuda),
        ("CUDNN Version", _packages(r"nvidia-cudnn(-cu\d+)?") or NONE),
    ):
        lines += [f"**{field}**: {value}", ""]
    torch = torch_build()
    built = f" (CUDA {torch['cuda']})" if torch.get("cuda") else ""
    for field, value in (
        ("Operating System", operating_system()),
        ("Python Version (if applicable)", f"{platform.python_implementation()} {platform.python_version()}"),
        ("Tensorflow Version (if applicable)", _packages(r"tensorflow(-cpu)?") or NONE),
        ("PyTorch Version (if applicable)", f"{torch['version']}{built}" if torch.get("version") else NONE),
        ("Baremetal or Container (if so, version)", container()),
        (
            "ONNX, ONNX Runtime, CUDA Python",
            _packages(r"onnx|onnxruntime(-gpu)?|cuda-(python|bindings)|polygraphy"),
        ),
        ("RestoRT", __version__),
    ):
        lines += [f"{field}: {value}", ""]
    return "\n".join(lines)


def driver_version() -> str:
    """The version of the NVIDIA driver, from the kernel module's own file."""
    try:
        found = re.search(r"Kernel Module[^\n]*?\s(\d+(?:\.\d+)+)\s", DRIVER.read_text("utf-8", "replace"))
    except OSError:
        found = None
    return found[1] if found else "unknown (see nvidia-smi)"


def operating_system() -> str:
    """The distribution and the kernel, such as 'Ubuntu 24.04.1 LTS, Linux 6.8.0 x86_64'."""
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def container() -> str:
    """'Container (Docker)' and the like, or 'Baremetal' where nothing shows one."""
    for path, name in CONTAINERS.items():
        if Path(path).exists():
            return f"Container ({name})"
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "Container (Kubernetes)"
    return "Baremetal, or a container that does not show"


def _packages(pattern: str) -> str:
    """The installed packages whose names match, with their versions."""
    found = set()
    for distribution in metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if re.fullmatch(pattern, name):
            found.add(f"{name} {distribution.version}")
    return ", ".join(sorted(found))
