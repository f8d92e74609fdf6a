"""RestoRT: image-restoration transformers (Restormer, ELAN) on real pictures.

    import restort

    model = restort.load("elan-light-x4")       # or a file of weights
    enlarged = model(image)                     # NumPy (H, W, 3) uint8 -> (4H, 4W, 3) uint8
    restort.restore("old.jpg", "new.png", model="restormer-small-denoise")

Everything is imported on first use: `import restort` alone costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from restort.version import __version__

__all__ = ["Model", "RestortError", "UsageError", "__version__", "list_models", "load", "restore"]

if TYPE_CHECKING:
    from restort.errors import RestortError, UsageError
    from restort.inference.api import list_models, restore
    from restort.inference.model import Model, load

_HOMES = {
    "Model": "restort.inference.model",
    "load": "restort.inference.model",
    "restore": "restort.inference.api",
    "list_models": "restort.inference.api",
    "RestortError": "restort.errors",
    "UsageError": "restort.errors",
}


def __getattr__(name: str) -> Any:
    if name == "torch":  # a module, not a name of one; PyTorch is imported with it
        import importlib

        return importlib.import_module("restort.torch")
    if name not in _HOMES:
        raise AttributeError(f"module 'restort' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
