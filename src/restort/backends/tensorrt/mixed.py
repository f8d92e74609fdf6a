"""Which sections of a network a mixed engine keeps in float32: chosen by measurement, kept in the cache folder.

restort.profiling.sensitivity makes the choice, with PyTorch; runners only read it.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.errors import RestortError
from restort.export.form import sections
from restort.utils.cache_dir import cache_root

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights


def choice_path(weights: Weights) -> Path:
    """The file of the choice for these weights; the last one made holds."""
    return cache_root() / "sensitivity" / f"{weights.digest[:16]}.json"


def choice(weights: Weights) -> dict[str, Any] | None:
    """The choice that was made for these weights, as restort.profiling.sensitivity wrote it; None without one."""
    try:
        found: dict[str, Any] = json.loads(choice_path(weights).read_text("utf-8"))
        if found["weights_sha256"] == weights.digest and set(found["keep_fp32"]) <= set(
            sections(weights.spec)
        ):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def kept_sections(weights: Weights) -> tuple[str, ...]:
    """The sections that a mixed engine of these weights keeps in float32, in the order they run.

    Raises RestortError where no choice has been made.
    """
    found = choice(weights)
    if found is None:
        raise RestortError(
            "which blocks of this network need float32 has not been measured here; `restort build --precision mixed` "
            "with the same --model or --weights does that (it needs PyTorch, and a few minutes)"
        )
    return tuple(name for name in sections(weights.spec) if name in found["keep_fp32"])


def remember(weights: Weights, record: dict[str, Any]) -> Path:
    """Keeps a choice for `kept_sections`; where the cache cannot be written, RestortError."""
    path = choice_path(weights)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record, indent=1), "utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RestortError(f"cannot write {path} ({error.strerror or error}); set RESTORT_CACHE") from None
    return path
