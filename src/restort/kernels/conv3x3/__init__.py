"""3x3 convolutions: of the image, before a pixel-unshuffle, before a pixel-shuffle, and to the resulting image.

`kernel.launch` for the middle two and the last, `first.launch` for the first; the formulas are in `reference`. The same
in CUDA C++: `tile.launch` (compute capability 9.0) and `first_tile.launch`.
"""
