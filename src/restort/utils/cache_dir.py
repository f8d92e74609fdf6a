"""The cache folder: downloaded weights, ONNX graphs, engines, timings. Everything in it can be made again."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path


def cache_root() -> Path:
    """Return RESTORT_CACHE if it is set, else the cache folder of the user. The folder may not exist yet."""
    chosen = os.environ.get("RESTORT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_path("restort"))


def distrusted(path: Path) -> str | None:
    """Say why a file of the cache must not be used: others than this user and root can have written it.

    None where it may be used or is absent, and on Windows, whose profile folders are private.
    """
    if os.name != "posix":
        return None
    try:
        file, folder = path.stat(), path.parent.stat()
    except OSError:
        return None
    if file.st_uid not in (0, os.geteuid()):
        return "it belongs to another user"
    if file.st_mode & stat.S_IWOTH:
        return "every user may write it"
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        return f"every user may write its folder {path.parent}"
    return None


def slug(text: str) -> str:
    """Make a file name of `text`: lower case, other characters than letters, digits and dots become dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"
