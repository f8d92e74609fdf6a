"""What works here. Every check is guarded: a broken part is a finding, never an error."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from restort.utils.extras import install_command, reinstall_command
from restort.utils.text import printable
from restort.version import __version__

Findings = dict[str, Any]

CORE = (
    "numpy",
    "onnx",
    "onnxruntime",
    "pyvips",
    "pillow",
    "safetensors",
    "platformdirs",
    "tqdm",
    "psutil",
    "filelock",
)
EXTRAS = {
    "openvino": ("openvino",),
    "torch": ("torch",),
    "fused": ("torch", "triton"),
    "rtx": ("tensorrt-rtx-cu13", "cuda-python"),
    "tensorrt": ("tensorrt", "cuda-python"),
    "evaluate": ("scikit-image", "h5py", "scipy"),
    "plots": ("matplotlib",),
    "formats": ("pillow-heif", "pillow-jxl-plugin", "rawpy"),
    "completion": ("shtab",),
}
_PURPOSE = {
    "openvino": "the fastest backend on Intel and AMD processors, and bfloat16",
    "torch": "the reference networks, the torch backend, training",
    "fused": "NVIDIA GPUs",
    "rtx": "engines for RTX cards: TensorRT-RTX builds them anywhere",
    "tensorrt": "engines for data-centre GPUs",
    "evaluate": "SSIM and blur kernels of `restort evaluate`",
    "plots": "curves and charts",
    "formats": "reading HEIC, JPEG XL and camera raw",
    "completion": "`restort completion`",
}
_ON_A_GPU = ("fused", "tensorrt")  # most machines cannot use these backends, which is not a defect
# Processor features that determine the speed of these networks.
_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)


def examine() -> Findings:
    """Return all findings, ready for JSON; `healthy` where pictures can be read and some backend works."""
    findings: Findings = {
        "restort": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": _guarded(machine),
        "libraries": {name: _version(name) for name in CORE},
        "pictures": _guarded(pictures),
        "backends": _guarded(backends),
        "extras": {name: {package: _version(package) for package in EXTRAS[name]} for name in EXTRAS},
        "cache": _guarded(cache),
        "models": _guarded(models),
    }
    findings["missing"] = missing(findings)
    works = isinstance(findings["backends"], list) and any(item["works"] for item in findings["backends"])
    findings["healthy"] = works and bool(findings["pictures"].get("works"))
    return findings


def _guarded(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception as error:
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> Findings:
    """Return the processor, the number of usable cores, its features and memory in bytes."""
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = [line.partition(":") for line in info.read_text("utf-8", "replace").splitlines()]
        values = {key.strip().lower(): value.strip() for key, _, value in fields}
        name = values.get("model name") or name
        flags = set((values.get("flags") or values.get("features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: Findings = {"processor": name, "cores": cores, "features": [f for f in _FEATURES if f in flags]}
    if importlib.util.find_spec("psutil"):
        import psutil

        memory = psutil.virtual_memory()
        found |= {"memory_bytes": memory.total, "memory_free_bytes": memory.available}
    return found


def pictures() -> Findings:
    """Write and read a small picture in each format by libvips."""
    import tempfile

    import numpy as np

    from restort.imaging import extra_formats, formats
    from restort.imaging.decode import read
    from restort.imaging.encode import write
    from restort.imaging.picture import Picture
    from restort.imaging.vips import vips

    found: Findings = {
        "libvips": ".".join(str(vips().version(i)) for i in range(3)),
        "formats": {},
        "extra": {name: extra_formats.installed(name) for name in formats.EXTRA},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in formats.WRITABLE:
            path = Path(folder) / f"picture{formats.READABLE[name][0]}"
            try:
                write(path, Picture(np.full((16, 16, 3), 128, np.uint8)))
                found["formats"][name] = read(path).pixels.shape == (16, 16, 3)
            except Exception:
                found["formats"][name] = False
    found["works"] = found["formats"].get("png", False) and found["formats"].get("jpeg", False)
    return found


def backends() -> list[Findings]:
    from restort.backends.registry import status

    return [dataclasses.asdict(item) for item in status()]


def cache() -> Findings:
    """Return the cache folder, the size of its files in bytes, and whether it can be written."""
    from restort.utils.cache_dir import cache_root

    root = cache_root()
    sizes = {"weights": 0, "graphs": 0, "engines": 0, "other": 0}
    for path in root.rglob("*") if root.is_dir() else ():
        if path.is_file():
            part = path.relative_to(root).parts[0]
            sizes[part if part in sizes else "other"] += path.stat().st_size
    nearest = root
    while not nearest.exists():
        nearest = nearest.parent
    return {
        "folder": str(root),
        "bytes": sum(sizes.values()),
        "parts": sizes,
        "writable": nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
    }


def models() -> Findings:
    """Return the names of the shipped, cached and downloadable models."""
    from restort.utils.cache_dir import cache_root
    from restort.weights.catalogue import entries

    folder, found = cache_root() / "weights", entries()
    return {
        "shipped": [entry.name for entry in found if entry.shipped],
        "cached": [
            entry.name for entry in found if not entry.shipped and (folder / entry.filename).is_file()
        ],
        "downloadable": [entry.name for entry in found if not entry.shipped],
    }


def missing(findings: Findings) -> list[dict[str, str]]:
    """Return what is missing, what it is for, and how to get it."""
    absent = [name for name, version in findings["libraries"].items() if version is None]
    found = [
        {"what": name, "for": "the core", "how": f"pip install --force-reinstall {_pip_name(name)}"}
        for name in absent
    ]
    if "error" in findings["pictures"] or not findings["pictures"].get("works"):
        why = findings["pictures"].get("error", "PNG or JPEG fails")
        how = "pip install --force-reinstall 'pyvips[binary]'"
        found.append({"what": f"reading pictures ({why})", "for": "everything", "how": how})
    states = findings["backends"]
    for item in states if isinstance(states, list) else ():
        if not item["works"]:
            reason, remedy = item["reason"] or "does not work", item["remedy"] or "see the documentation"
            on_gpu = item["name"] in _ON_A_GPU
            purpose = "running models on NVIDIA GPUs" if on_gpu else "running models"
            found.append({"what": f"{item['name']} ({reason})", "for": purpose, "how": remedy})
    listed = {item["name"] for item in states} if isinstance(states, list) else set()
    for extra, packages in findings["extras"].items():
        lacking = [name for name, version in packages.items() if version is None]
        if lacking and extra not in listed:
            how = install_command(extra)
            found.append({"what": ", ".join(lacking), "for": _PURPOSE[extra], "how": how})
    if not findings["cache"].get("writable"):
        how = "set RESTORT_CACHE to a folder that can be written"
        found.append({"what": "a cache folder", "for": "emitted graphs and downloads", "how": how})
    if not findings["models"].get("shipped"):
        how = f"{reinstall_command()}, or use --model NAME or --weights FILE"
        found.append({"what": "shipped models", "for": "the commands without --model", "how": how})
    return found


def _pip_name(name: str) -> str:
    return "'pyvips[binary]'" if name == "pyvips" else name


def text(findings: Findings) -> str:
    """Word the findings for people."""
    lines = [f"restort {findings['restort']}, Python {findings['python']}, {findings['platform']}"]
    here = findings["machine"]
    if "error" in here:
        lines.append(f"machine: unknown ({here['error']})")
    else:
        memory = ""
        if "memory_bytes" in here:
            memory = f", {here['memory_free_bytes'] / 2**30:.1f} of {here['memory_bytes'] / 2**30:.1f} GiB memory free"
        features = " ".join(here["features"]) or "no special features known"
        lines.append(f"machine: {here['processor']}, {here['cores']} cores{memory}; {features}")
    lines += ["", "core: " + ", ".join(f"{k} {v or 'MISSING'}" for k, v in findings["libraries"].items())]
    seen = findings["pictures"]
    if "error" in seen:
        lines.append(f"pictures: BROKEN ({seen['error']})")
    else:
        works = ", ".join(name if ok else f"{name} BROKEN" for name, ok in seen["formats"].items())
        extra = ", ".join(name for name, ok in seen["extra"].items() if ok)
        lines.append(f"pictures: libvips {seen['libvips']}: {works}{'; read alone: ' * bool(extra)}{extra}")
    lines += ["", "backends:"]
    if isinstance(findings["backends"], list):
        for item in findings["backends"]:
            state = (
                "works: " + ", ".join(item["precisions"])
                if item["works"]
                else "not here"
                if not item["installed"]
                else "cannot be used here"
                if item["name"] in _ON_A_GPU
                else "BROKEN"
            )
            lines.append(f"  {item['name']:12} {item['version'] or '-':14} {state}")
    else:
        lines.append(f"  BROKEN ({findings['backends']['error']})")
    store = findings["cache"]
    if "error" in store:
        lines += ["", f"cache: BROKEN ({store['error']})"]
    else:
        state = "" if store["writable"] else ", NOT WRITABLE"
        lines += ["", f"cache: {store['folder']}, {store['bytes'] / 1e6:.1f} MB{state}"]
    zoo = findings["models"]
    if "error" in zoo:
        lines.append(f"models: BROKEN ({zoo['error']})")
    else:
        lines.append(f"models shipped: {', '.join(zoo['shipped']) or 'none'}")
        lines.append(f"models cached: {', '.join(zoo['cached']) or 'none'}")
    if findings["missing"]:
        lines += ["", "missing:"]
        lines += [f"  {item['what']}, for {item['for']}: {item['how']}" for item in findings["missing"]]
    lines += ["", "restort works here" if findings["healthy"] else "restort does NOT work here: see missing"]
    return "\n".join(printable(line) for line in lines)
