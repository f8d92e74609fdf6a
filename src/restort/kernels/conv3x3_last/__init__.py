"""The last 3x3 convolution, to the resulting image, on Hopper. Elsewhere it is conv3x3's Triton kernel (LAST)."""
