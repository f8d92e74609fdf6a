"""Depthwise 3x3 over q, k, v; the Gram matrix of q and k and their sums of squares; only v is stored.

The sums are partial: restort.kernels.attention_matrix adds them.
"""
