"""The 3x3 convolution from features to a picture, with the pixel shuffle and the mean colour in its store.

Features with their border of zeros (see colour_head) to float32 (N, C, H * scale, W * scale).
"""
