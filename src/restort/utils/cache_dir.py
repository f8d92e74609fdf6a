"""The cache folder: downloaded weights, ONNX graphs, engines, timings. Everything in it can be made again."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cache_root() -> Path:
    """Return RESTORT_CACHE if it is set, else the cache folder of the user. The folder may not exist yet."""
    chosen = os.environ.get("RESTORT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_path("restort"))


def slug(text: str) -> str:
    """Make a file name of `text`: lower case, other characters than letters, digits and dots become dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"
