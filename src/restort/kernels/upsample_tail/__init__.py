"""The 3x3 convolution from features to a picture, with the pixel shuffle and the mean colour in its store.

Features with their border of zeros (see colour_head) to float32 (N, C, H * scale, W * scale).
"""

from restort.kernels.upsample_tail import tile
from restort.kernels.upsample_tail.kernel import launch
from restort.kernels.upsample_tail.reference import upsample_tail

__all__ = ["launch", "tile", "upsample_tail"]
