"""The digest of the sources that an AOT package is compiled from."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def sources_digest() -> str:
    """Return the SHA-256 of the sources that decide a package: restort.kernels and restort.backends.fused."""
    root = Path(__file__).parents[2]
    found = hashlib.sha256()
    for folder in (root / "kernels", root / "backends" / "fused"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
