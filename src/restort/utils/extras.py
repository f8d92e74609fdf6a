"""Libraries that only measuring needs, imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

from restort.errors import RestortError

_PACKAGES = {"skimage": "scikit-image", "h5py": "h5py", "scipy": "scipy", "matplotlib": "matplotlib"}
_EXTRAS = {"matplotlib": "plots"}  # the others are in `evaluate`


def need(module: str, purpose: str) -> Any:
    """The imported module; RestortError with the command that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        root = module.split(".")[0]
        package, extra = _PACKAGES[root], _EXTRAS.get(root, "evaluate")
        raise RestortError(
            f"{purpose} needs {package}, which is not installed; "
            f"install it with: pip install 'restort[{extra}]'"
        ) from None
