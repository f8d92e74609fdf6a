"""LayerNorm, 1x1 expansion to q, k, v, depthwise 3x3, Gram matrix and norms of q and k: one pass that stores v only.

q and k live in shared memory, so a pixel costs 2 C numbers of memory traffic instead of 8 C.
"""
