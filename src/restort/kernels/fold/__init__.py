"""From the partial sums of q and k to one matrix per image: cosine scores, temperature, softmax, output projection.

`kernel.launches`; the formula is in `reference`.
"""
