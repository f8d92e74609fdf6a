"""Normalise, expand to q, k, v, depthwise 3x3, Gram matrix and norms of q and k: one pass that stores v only.

q and k live in shared memory, so a pixel costs 2 C numbers of memory traffic, not 8 C.
"""

from __future__ import annotations

from restort.kernels.stream_gram.kernel import launch, splits, worthwhile
from restort.kernels.stream_gram.reference import stream_gram

__all__ = ["launch", "splits", "stream_gram", "worthwhile"]
