"""The fused backend: networks as short sequences of GPU kernels (restort.kernels), each pass one CUDA graph."""
