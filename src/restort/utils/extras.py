"""Optional libraries of `restort evaluate` and of plots, imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from restort.errors import RestortError

_PACKAGES = {"skimage": "scikit-image", "h5py": "h5py", "scipy": "scipy", "matplotlib": "matplotlib"}
_EXTRAS = {"matplotlib": "plots"}  # the others belong to the extra `evaluate`


def need(module: str, purpose: str) -> Any:
    """Import a module; if it is missing, raise a RestortError that names the command to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        root = module.split(".")[0]
        package, extra = _PACKAGES[root], _EXTRAS.get(root, "evaluate")
        raise RestortError(
            f"{purpose} needs {package}, which is not installed; run: pip install 'restort[{extra}]'"
        ) from None
