"""Depthwise 3x3 over gates and values, GELU(gate) * value, 1x1 projection and residual.

`kernel.launch`; the formula is in `reference`.
"""
