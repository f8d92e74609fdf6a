"""LayerNorm over channels and the 1x1 expansion after it; triton.launch_apply applies the attention before both."""
