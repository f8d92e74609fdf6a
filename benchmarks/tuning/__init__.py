"""The ops that tune_kernels.py times: where they stand in the networks, and the variants of each kernel."""
