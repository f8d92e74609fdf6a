"""The beginning of checks that run ELAN's kernels in Triton's CPU interpreter."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")
interpreted = pytest.mark.skipif(
    tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7),
    reason="the CPU interpreter of this Triton does not run with NumPy 2.4",
)
COMMON = """
import torch
from tests.fakes import triton_interpreter

triton_interpreter.widen_products()
torch.manual_seed(0)
TYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

def padded(n, h, w, channels, dtype, size=1.0):
    x = torch.zeros(n, h + 4, w + 4, -(-channels // 64) * 64, dtype=dtype)
    x[:, 2:-2, 2:-2, :channels] = torch.randn(n, h, w, channels) * size
    return x

def inner(x):
    return x[:, 2:-2, 2:-2]

def near(mine, reference, dtype, what):
    error = ((mine.double() - reference.double()).norm() / reference.double().norm()).item()
    assert error < TYPES[dtype], (what, error)

def only_border(x):
    y = x.clone()
    inner(y).zero_()
    return y
"""
