"""How a clean photograph is damaged for training: each module one kind of damage, `recipes` the mixtures.

Every function takes pictures (N, C, H, W), float, in [0, 1] unless it says otherwise, works on the device of its input
without waiting for it, and draws from the given `torch.Generator` alone: the same seed on the same kind of device gives
the same numbers again. Random numbers of a CPU and a GPU generator differ, as PyTorch says.
"""
