"""Depthwise 3x3 over gates and values, GELU(gate) * value, 1x1 projection and residual.

sm80 has the gating alone, and so does triton.launch_gate: where channels are many, the projection is a conv1x1.
"""
