"""Where RestoRT keeps what it can fetch or make again: downloaded weights, emitted graphs."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cache_root() -> Path:
    """The folder of the caches: RESTORT_CACHE if set and not empty, else the user's cache folder.

    The folder need not exist; whoever writes into it makes it.
    """
    chosen = os.environ.get("RESTORT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_path("restort"))


def slug(text: str) -> str:
    """`text` in letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"
