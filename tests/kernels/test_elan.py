"""ELAN's kernels, in Triton's CPU interpreter, against their references on the same arrays."""

from __future__ import annotations

import pytest

from tests.fakes import triton_interpreter

pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7):
    pytest.skip("the CPU interpreter of this Triton does not run with NumPy 2.4", allow_module_level=True)

COMMON = """
import torch
from tests.fakes import triton_interpreter
from restort.kernels import colour_head, lfe, upsample_tail, window_attention

triton_interpreter.widen_products()
torch.manual_seed(0)
TYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

def wide(n, h, w, channels, dtype, size=1.0):
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

LFE = (
    COMMON
    + """
for dtype, n, h, w, channels, hidden, part, depth, choice in [
    (torch.float32, 2, 16, 32, 60, 32, 24, 32, None),
    (torch.float16, 1, 32, 16, 60, 32, 24, 32, (8, 16, 4, 1, 1)),
    (torch.bfloat16, 1, 16, 16, 60, 32, 24, 32, (16, 16, 4, 1, 1)),
    (torch.float32, 1, 16, 16, 180, 80, 64, 64, None),
    (torch.float32, 1, 16, 16, 96, 48, 32, 32, (4, 16, 4, 1, 1)),
]:
    x = wide(n, h, w, channels, dtype)
    stored = x.shape[3]
    def weights(*shape):
        return (torch.randn(*shape) / stored**0.5).to(dtype)
    local = weights(5, stored, hidden), torch.randn(5, hidden), weights(5, hidden, stored), torch.randn(stored)
    values, queries = ((weights(3, stored, depth), torch.randn(3, depth)) for _ in range(2))
    for q_too in (True, False):
        out = torch.full_like(x, 7)
        v, q = (torch.zeros(n, h, w, 3 * part, dtype=dtype) for _ in range(2))
        lfe.launch(x, local, values, queries if q_too else None, out, v, q, channels, choice=choice)()
        expected = lfe.lfe(x, local, values, queries, channels)
        near(inner(out), expected[0], dtype, "x")
        near(v, expected[1][..., :part].reshape(v.shape), dtype, "v")
        if q_too:
            near(q, expected[2][..., :part].reshape(v.shape), dtype, "q")
        else:
            assert not q.any()
        assert torch.equal(only_border(out), only_border(torch.full_like(x, 7)))
print("agree")
"""
)

ATTENTION = (
    COMMON
    + """
for dtype, n, h, w, channels, part, depth, choice in [
    (torch.float32, 2, 16, 48, 60, 24, 32, None),
    (torch.float32, 1, 32, 32, 60, 24, 32, (2, 128, 4, 1, 1)),
    (torch.float16, 1, 48, 16, 60, 24, 32, (1, 256, 4, 1, 1)),
    (torch.bfloat16, 1, 16, 32, 60, 24, 32, (1, 32, 4, 1, 1)),
    (torch.float32, 1, 16, 16, 180, 64, 64, (2, 64, 8, 2, 2)),
]:
    x, extra = (wide(n, h, w, channels, dtype) for _ in range(2))
    q, v = (torch.randn(n, h, w, 3 * part).to(dtype) for _ in range(2))
    q *= 2
    weights = (torch.randn(3, depth, x.shape[3]) / 8).to(dtype), torch.randn(x.shape[3])
    for rolled in (False, True):
        expected = window_attention.window_attention(q, v, x, weights, rolled)
        out = x.clone()
        window_attention.launch(q, v, out, weights, out, channels, rolled, choice=choice)()
        near(inner(out), expected, dtype, (rolled, "in place"))
        assert not only_border(out).any()
    expected = window_attention.window_attention(q, v, x, weights, True, extra)
    out = torch.zeros_like(x)
    window_attention.launch(q, v, x, weights, out, channels, True, extra, choice=choice)()
    near(inner(out), expected, dtype, "with extra")
print("agree")
"""
)

ENDS = (
    COMMON
    + """
for dtype, n, h, w, colors, channels, scale in [
    (torch.float32, 2, 16, 32, 3, 60, 4),
    (torch.float32, 1, 16, 16, 1, 180, 3),
    (torch.float16, 1, 32, 16, 3, 60, 2),
    (torch.bfloat16, 1, 16, 16, 3, 60, 3),
    (torch.float32, 1, 16, 16, 3, 60, 1),
]:
    image = torch.rand(n, colors, h, w)
    offset = torch.randn(colors)
    out = torch.full_like(wide(n, h, w, channels, dtype), 7)
    others = torch.full_like(out, 7), torch.full_like(out, 7)
    rows = 32 if colors == 3 else 16
    head = (torch.randn(rows, out.shape[3]) / 5).to(dtype), torch.randn(out.shape[3])
    colour_head.launch(image, offset, head, out, others, 255.0, channels)()
    near(inner(out), colour_head.colour_head(image, offset, head, 255.0), dtype, "head")
    assert not only_border(out).any()
    for other in others:
        assert not only_border(other).any() and (inner(other) == 7).all()
    x = wide(n, h, w, channels, dtype)
    made = max(16, 1 << (colors * scale**2 - 1).bit_length())
    tail = (torch.randn(9, out.shape[3], made) / 20).to(dtype), torch.randn(made)
    result = torch.zeros(n, colors, h * scale, w * scale)
    upsample_tail.launch(x, tail, result, scale, 0.5, channels)()
    near(result, upsample_tail.upsample_tail(x, tail, colors, scale, 0.5), torch.float32, "tail")
print("agree")
"""
)


@pytest.mark.parametrize("check", [LFE, ATTENTION, ENDS], ids=["lfe", "window_attention", "head and tail"])
def test_kernel_agrees_with_its_reference(check: str) -> None:
    assert triton_interpreter.run(check) == "agree"
