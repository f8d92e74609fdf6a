"""Restormer as a sequence of fused kernels. The format of its weights: restort.backends.fused.restormer_weights."""

from __future__ import annotations

from restort.backends.fused.restormer_weights import Packed, pack

__all__ = ["Packed", "pack"]
