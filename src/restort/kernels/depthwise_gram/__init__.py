"""Depthwise 3x3 over q, k, v; the Gram matrix of q and k and their sums of squares; only v is stored.

`kernel.launch` or, in CUDA C++, `tile.launch`; the formulas are in `reference`. The sums are partial:
restort.kernels.fold adds them.
"""
