"""Whether engines can run on this machine, found without importing TensorRT, and whether `auto` should run one."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from restort.utils.extras import install_command
from restort.utils.gpu import Unavailable, find_gpu, query_gpu

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

KERNELS = "RESTORT_TENSORRT_KERNELS"
"""The environment variable that names the kernels of engines: tensorrt or fused."""


def default_kernels() -> str:
    """The kernels that RESTORT_TENSORRT_KERNELS names, or the library's."""
    return os.environ.get(KERNELS) or "tensorrt"


def check_available() -> Unavailable | None:
    """Return the first thing that is missing to run engines; None where nothing seems to be."""
    found = query_gpu()
    if isinstance(found, Unavailable):
        return found
    if not _has("cuda.bindings.runtime") and not _has("cuda.cudart"):
        return Unavailable("cuda-python is not installed", "pip install cuda-python")
    return None


def check_usable() -> Unavailable | None:
    """Like `check_available`, and import TensorRT to see whether it loads and supports this GPU."""
    missing = check_available()
    if missing is not None:
        return missing
    from restort.backends.tensorrt.library import find
    from restort.errors import RestortError

    try:
        flavour, gpu = find(), find_gpu()
    except RestortError as error:
        return Unavailable(str(error), "see the documentation of TensorRT")
    targets = flavour.targets()
    if gpu is not None and targets and gpu.compute_capability not in targets:
        return Unavailable(
            f"{flavour.title} does not support {gpu.name} (compute capability {gpu.compute_capability})",
            f"use --backend fused, or TensorRT: {install_command('tensorrt')}",
        )
    return None


def is_ready(weights: Weights, precision: str) -> bool:
    """Return whether an engine of these weights for this machine is in the cache, so that nothing need be built.

    Engines are known by their sidecars; no library is imported.
    """
    from restort.backends.tensorrt.cache import EngineCache
    from restort.backends.tensorrt.engine_key import runs_with
    from restort.backends.tensorrt.library import installed

    gpu, versions = find_gpu(), installed()
    if gpu is None:
        return False
    for stored in EngineCache().entries():
        about, key = stored.about, stored.key
        model = about.get("model") or {}
        if (
            model.get("weights_sha256") == weights.digest
            and key["precision"] == precision
            and about.get("kernels", "tensorrt") == default_kernels()
            and runs_with(key, key["version"], versions.get(key["flavour"], ""))
            and gpu.compute_capability in key["targets"]
            and key["gpu"] in (None, gpu.name)
        ):
            return True
    return False


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a parent package is absent
        return False
