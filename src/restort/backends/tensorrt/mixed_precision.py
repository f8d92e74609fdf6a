"""The sections of a network that a mixed engine keeps in float32: chosen by measurement, stored in the cache folder.

restort.profiling.sensitivity measures and chooses, with PyTorch; runners only read the choice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.errors import RestortError
from restort.export.form import sections
from restort.utils.cache_dir import cache_root
from restort.utils.files import write_bytes

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights


def choice_path(weights: Weights) -> Path:
    """The file of the choice for these weights."""
    return cache_root() / "sensitivity" / f"{weights.digest[:16]}.json"


def choice(weights: Weights) -> dict[str, Any] | None:
    """Read the choice for these weights, as restort.profiling.sensitivity wrote it; None without one."""
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

    Raises RestortError where none were chosen yet.
    """
    found = choice(weights)
    if found is None:
        raise RestortError(
            "not measured yet which blocks of this network need float32; run `restort build --precision mixed` with "
            "the same --model or --weights (it needs PyTorch and a few minutes)"
        )
    return tuple(name for name in sections(weights.spec) if name in found["keep_fp32"])


def remember(weights: Weights, record: dict[str, Any]) -> Path:
    """Store a choice for `kept_sections`, in place of an earlier one. Raises RestortError where that fails."""
    path = choice_path(weights)
    write_bytes(path, json.dumps(record, indent=1).encode(), overwrite=True, private=True)
    return path
