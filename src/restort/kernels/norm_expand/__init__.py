"""Layer normalisation over channels and the 1x1 expansion after it; with the attention's application before it.

`kernel.launch` and `kernel.launch_apply`, `wide.launch` for many channels on Hopper; the formulas are in `reference`.
"""
