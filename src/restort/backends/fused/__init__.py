"""The networks as short sequences of fused GPU kernels (restort.kernels), each pass one CUDA graph."""
