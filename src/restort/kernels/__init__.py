"""GPU kernels: one operation a folder.

reference.py    the formula in PyTorch, on the kernels' arrays
triton.py       the kernel in Triton, for every GPU
sm80.{py,cu}    the kernel in CUDA C++ for compute capability 8.0 and higher, and its launch
sm90.{py,cu}    likewise with Hopper's instructions (wgmma, cp.async.bulk), for compute capability 9.0 alone

An operation has the kernels that were worth writing. include/ has the headers of the .cu files, whose functions have
the names of PTX's instructions.

Activations are channels-last, (N, H, W, C) contiguous, float16 or bfloat16 (ELAN's residual stream may be float32);
statistics and accumulation are float32. Kernels know arrays and sizes, never networks.
"""
