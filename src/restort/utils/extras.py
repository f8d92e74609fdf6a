"""Optional dependencies: import them when first used, their versions, and the commands that install them."""

from __future__ import annotations

import importlib
import importlib.metadata
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from restort.errors import RestortError

_PACKAGES = {
    "skimage": "scikit-image",
    "h5py": "h5py",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "shtab": "shtab",
    "fastapi": "FastAPI",
    "uvicorn": "Uvicorn",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
_EXTRAS = {
    "matplotlib": "plots",
    "shtab": "completion",
    **dict.fromkeys(("fastapi", "uvicorn", "multipart", "prometheus_client"), "server"),
}  # the others are in `evaluate`


@cache
def clone_folder() -> Path | None:
    """Return the root of the clone that this package runs from; None where it was installed from a wheel."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "restort").is_dir() else None


def install_command(extra: str) -> str:
    """Return the command that installs an optional dependency, for a clone or for an installed package."""
    root = clone_folder()
    return (
        f"pip install 'restort[{extra}]'"
        if root is None
        else f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    )


def reinstall_command() -> str:
    """Return the command that brings back missing or damaged files of the package."""
    root = clone_folder()
    if root is None:
        return "pip install --force-reinstall --no-deps restort"
    return f"git -C {shlex.quote(str(root))} checkout -- src/restort"


def need(module: str, purpose: str) -> Any:
    """Import a module; raise RestortError with the command that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        root = module.split(".")[0]
        command = install_command(_EXTRAS.get(root, "evaluate"))
        raise RestortError(
            f"{purpose} needs {_PACKAGES[root]}, which is not installed; install it with: {command}"
        ) from None


def library_version(name: str) -> str | None:
    """Return the installed version of a library by its import name or package name; None where it is unknown."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        packages = importlib.metadata.packages_distributions().get(name, ())
        return importlib.metadata.version(packages[0]) if packages else None
