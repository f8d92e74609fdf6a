"""3x3 convolutions between the levels: before a pixel-unshuffle (DOWN) and before a pixel-shuffle (UP).

The Triton kernel also is the last convolution, to the resulting image (LAST); on Hopper that is conv3x3_last.
"""
