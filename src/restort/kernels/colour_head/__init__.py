"""The 3x3 convolution from a picture to features: centred by the mean colour, zeros around both.

The picture is float32 (N, C, H, W) in [0, 1], the features are (N, H + 4, W + 4, 64 * chunks) with two rows and columns
of zeros around them, which later kernels read instead of testing for the picture's edge. The centred picture goes into
the product as the sum of two numbers of the storage type, so that it is exact.
"""
