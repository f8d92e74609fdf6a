"""Triton's CPU interpreter for tests: what it cannot do yet, and how a check runs in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def widen_products() -> None:
    """Makes tl.dot multiply float32 copies of 16-bit operands, which changes nothing but the time for float16.

    The interpreter (Triton 3.9) keeps bfloat16 as its bits, and multiplies those; and float16 without BLAS.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar == tl.float16:
            return TensorHandle(handle.data.astype(np.float32), tl.float32)
        if handle.dtype.scalar == tl.bfloat16:
            bits = handle.data.astype(np.uint32) << 16
            return TensorHandle(bits.view(np.float32), tl.float32)
        return handle

    def dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return plain(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = dot


def run(check: str, *arguments: str) -> str:
    """What the code prints in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", check, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
