"""The training kernels, in Triton's CPU interpreter, against plain PyTorch: values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7):
    pytest.skip("the CPU interpreter of this Triton does not run with NumPy 2.4", allow_module_level=True)

CHECK = """
import torch, torch.nn.functional as F
from restort.models import elan
from train import triton_ops as ops

def compare(mine, reference, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    a, b = mine(*inputs), reference(*twins)
    g = torch.randn_like(b)
    a.backward(g); b.backward(g)
    for x, y in [(a, b), *((i.grad, t.grad) for i, t in zip(inputs, twins))]:
        error = ((x - y).norm() / y.norm()).item()
        assert error < 1e-5, (x.shape, error)

torch.manual_seed(0)
for n, c, h, w in [(2, 5, 9, 13), (1, 3, 32, 40)]:
    plain = lambda x, k: F.conv2d(x, k, padding=1, groups=c)
    compare(ops.depthwise3x3, plain, torch.randn(n, c, h, w), torch.randn(c, 1, 3, 3))
for size, h, w in [(4, 16, 16), (8, 16, 32), (16, 32, 16), (4, 8, 12)]:
    for rolled in (False, True):
        compare(
            lambda q, v: ops.window_attention(q, v, size, rolled),
            lambda q, v: elan.window_attention(q, v, size, rolled),
            torch.randn(2, 20, h, w), torch.randn(2, 20, h, w))
wide = torch.randn(2, 40, 16, 16)
q, v = wide.chunk(2, 1)
assert torch.allclose(ops.window_attention(q, v, 8, True), elan.window_attention(q, v, 8, True), atol=1e-5)
print("agree")
"""


def test_kernels_agree_with_pytorch() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, cwd=root, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agree"
