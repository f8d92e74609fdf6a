"""One fused GPU operation a folder: reference (PyTorch), kernel (Triton), and how it is launched.

Activations are channels-last, (N, H, W, C) contiguous, float16 or bfloat16 (ELAN's residual stream may be float32);
statistics and accumulation are float32. Kernels know arrays and sizes, never networks.
"""
