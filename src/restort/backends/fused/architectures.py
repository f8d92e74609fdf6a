"""The module that packs weights and plans passes of each architecture."""

from __future__ import annotations

from types import ModuleType

from restort.models.spec import Spec


def planner_of(spec: Spec) -> ModuleType:
    """Return restort.backends.fused.restormer or .elan, which have `pack` (weights) and `plan` (a forward pass)."""
    from restort.backends.fused import elan, restormer

    return {"restormer": restormer, "elan": elan}[spec.architecture]
