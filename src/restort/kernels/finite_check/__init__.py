"""Whether an array holds NaN or infinity: one flag per program, cheap enough to follow every forward pass.

16-bit activations overflow to infinity in networks whose weights are large, and no later layer turns that into a finite
number again: it is enough to check the output.
"""
