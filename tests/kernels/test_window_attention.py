"""Attention in windows: Triton's kernel in its interpreter, that in CUDA C++ in the emulator."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.window_attention import sm80  # noqa: E402
from restort.kernels.window_attention.reference import window_attention  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.fakes import triton_interpreter  # noqa: E402
from tests.kernels.cases import BRAIN, HALF, error, inner, padded  # noqa: E402
from tests.kernels.elan_in_triton import COMMON, interpreted  # noqa: E402

BOUND = {HALF: 5e-4, BRAIN: 4e-3}


TRITON = """
from restort.kernels.window_attention import triton
from restort.kernels.window_attention.reference import window_attention

for dtype, n, h, w, channels, part, depth, overrides in [
    (torch.float32, 2, 16, 48, 60, 24, 32, {}),
    (torch.float32, 1, 32, 32, 60, 24, 32, dict(QUADS=2, KEYS=128, warps=4, AHEAD=1, AHEAD_OUT=1)),
    (torch.float16, 1, 48, 16, 60, 24, 32, dict(QUADS=1, KEYS=256, warps=4, AHEAD=1, AHEAD_OUT=1)),
    (torch.bfloat16, 1, 16, 32, 60, 24, 32, dict(QUADS=1, KEYS=32, warps=4, AHEAD=1, AHEAD_OUT=1)),
    (torch.float32, 1, 16, 16, 180, 64, 64, dict(QUADS=2, KEYS=64, warps=8, AHEAD=2, AHEAD_OUT=2)),
]:
    x, extra = (padded(n, h, w, channels, dtype) for _ in range(2))
    q, v = (torch.randn(n, h, w, 3 * part).to(dtype) for _ in range(2))
    q *= 2
    weights = (torch.randn(3, depth, x.shape[3]) / 8).to(dtype), torch.randn(x.shape[3])
    for rolled in (False, True):
        expected = window_attention(q, v, x, weights, rolled)
        out = x.clone()
        triton.launch(q, v, out, weights, out, channels, rolled, **overrides)()
        near(inner(out), expected, dtype, (rolled, "in place"))
        assert not only_border(out).any()
    expected = window_attention(q, v, x, weights, True, extra)
    out = torch.zeros_like(x)
    triton.launch(q, v, x, weights, out, channels, True, extra, **overrides)()
    near(inner(out), expected, dtype, "with extra")
print("agree")
"""


@interpreted
def test_triton() -> None:
    assert triton_interpreter.run(COMMON + TRITON) == "agree"


@pytest.mark.parametrize(
    "n, h, w, channels, part, dtype, overrides",
    [
        (1, 32, 32, 60, 24, HALF, {}),
        (2, 16, 32, 60, 24, BRAIN, {"WARPS": 16, "BLOCKS": 1, "EARLY": 0}),
        (1, 32, 16, 180, 64, HALF, {}),
        (1, 16, 16, 120, 40, HALF, {}),
    ],
)
@pytest.mark.parametrize("rolled", [False, True])
def test_sm80(n, h, w, channels, part, dtype, overrides, rolled) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    depth, stored = channels // 3, -(-channels // 64) * 64
    x, extra = (padded(n, h, w, channels, dtype) for _ in range(2))
    q, v = torch.zeros(2, n, h, w, 3, part)
    q[..., :depth] = torch.randn(n, h, w, 3, depth)
    v[..., :depth] = torch.randn(n, h, w, 3, depth)
    q, v = (t.reshape(n, h, w, 3 * part).to(dtype) for t in (q, v))
    weight, bias = torch.zeros(3, 64, stored), torch.zeros(stored)
    weight[:, :depth, :channels] = torch.randn(3, depth, channels) / 8
    bias[:channels] = torch.randn(channels)
    weights = weight.to(dtype), bias
    blob = sm80.pack(weights, channels, part)
    for add in (None, extra):
        expected = window_attention(
            q.double(), v.double(), x.double(), (weights[0].double(), bias.double()), rolled,
            None if add is None else add.double(),
        )  # fmt: skip
        out = x.clone()
        emulate(sm80.launch(q, v, out, blob, out, channels, rolled, add, **overrides))
        assert error(inner(out), expected) < BOUND[dtype]
        inner(out).zero_()
        assert not out.any()
