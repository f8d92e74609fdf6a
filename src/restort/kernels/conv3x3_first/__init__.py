"""The first 3x3 convolution, from the float32 image to channels-last."""
