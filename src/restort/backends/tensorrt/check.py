"""Whether engines can be run here, found without importing TensorRT, and whether `auto` should run one."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from restort.utils.gpu import Trouble, look

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights


KERNELS = "RESTORT_TENSORRT_KERNELS"
"""Names the kernels of engines where the options do not: tensorrt or fused."""


def asked_kernels() -> str:
    """Those that the environment names, or the library's."""
    return os.environ.get(KERNELS) or "tensorrt"


def trouble() -> Trouble | None:
    """None where everything needed seems to be there, else the first thing that is not."""
    found = look()
    if isinstance(found, Trouble):
        return found
    if not _has("cuda.bindings.runtime") and not _has("cuda.cudart"):
        return Trouble("cuda-python is not installed", "pip install cuda-python")
    return None


def deep_trouble() -> Trouble | None:
    """`trouble()`, and whether the library loads and knows this GPU. Imports TensorRT where the rest is in order."""
    found = trouble()
    if found is not None:
        return found
    from restort.backends.tensorrt.flavour import find
    from restort.backends.tensorrt.gpu import gpu
    from restort.errors import RestortError

    try:
        flavour, here = find(), gpu()
    except RestortError as error:
        return Trouble(str(error), "see the documentation of TensorRT")
    targets = flavour.targets()
    if here is not None and targets and here.compute_capability not in targets:
        return Trouble(
            f"{flavour.title} does not run on {here.name} (compute capability {here.compute_capability})",
            "use --backend fused, or TensorRT: pip install 'restort[tensorrt]'",
        )
    return None


def is_ready(weights: Weights, precision: str) -> bool:
    """Whether an engine of these weights lies in the cache for this machine, so that nothing need be built.

    Nothing large is imported: engines are known by their sidecars.
    """
    from restort.backends.tensorrt.cache import EngineCache
    from restort.backends.tensorrt.flavour import installed
    from restort.backends.tensorrt.gpu import gpu

    here, versions = gpu(), installed()
    if here is None:
        return False
    for stored in EngineCache().entries():
        about, key = stored.about, stored.key
        model = about.get("model") or {}
        if (
            model.get("weights_sha256") == weights.digest
            and key["precision"] == precision
            and about.get("kernels", "tensorrt") == asked_kernels()
            and versions.get(key["flavour"]) == key["version"]
            and here.compute_capability in key["targets"]
            and key["gpu"] in (None, here.name)
        ):
            return True
    return False


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a package above it is not there
        return False
