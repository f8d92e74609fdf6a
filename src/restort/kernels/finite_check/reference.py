"""The op in plain PyTorch."""

from __future__ import annotations

from typing import Any

Tensor = Any


def non_finite(x: Tensor) -> bool:
    """Return whether any element is NaN or infinite."""
    return not bool(x.isfinite().all())
