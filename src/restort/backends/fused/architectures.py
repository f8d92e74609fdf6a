"""The module that packs weights and plans passes of each architecture."""

from __future__ import annotations

from types import ModuleType

from restort.models.spec import Spec


def planner_of(spec: Spec) -> ModuleType:
    """Return restormer_planner or elan_planner, which have `pack` (weights) and `plan` (a forward pass)."""
    from restort.backends.fused import elan_planner, restormer_planner

    return {"restormer": restormer_planner, "elan": elan_planner}[spec.architecture]
