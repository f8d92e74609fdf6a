"""Depthwise 3x3 over gates and values, GELU(gate) * value, 1x1 projection and residual.

`kernel.launch`, and for the gating alone `kernel.launch_gate` or, in CUDA C++, `tile.launch`; the formula is in
`reference`.
"""
