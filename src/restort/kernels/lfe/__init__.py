"""Local feature extraction and what attention needs of its result, in one kernel.

x' = x + W1 shift(relu(W0 shift(x) + b0)) + b1, then v = Wv x' + bv and, for a block with scores of its own, q.
Zhang et al., "Efficient Long-Range Attention Network for Image Super-resolution", ECCV 2022, sections 3.2 and 3.3.
"""
