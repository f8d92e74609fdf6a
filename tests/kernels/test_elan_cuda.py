"""ELAN's kernels in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import lfe, upsample_tail, window_attention  # noqa: E402
from tests.emulator import emulate  # noqa: E402

BOUND = {torch.float16: 5e-4, torch.bfloat16: 4e-3}


def error(a: Any, b: Any) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def wide(n: int, h: int, w: int, channels: int, dtype: Any) -> Any:
    x = torch.zeros(n, h + 4, w + 4, -(-channels // 64) * 64, dtype=dtype)
    x[:, 2:-2, 2:-2, :channels] = torch.randn(n, h, w, channels)
    return x


def inner(x: Any) -> Any:
    return x[:, 2:-2, 2:-2]


def local_weights(channels: int, padded: int, dtype: Any) -> tuple[Any, Any, Any, Any]:
    """As restort.backends.fused.elan_weights pads them."""
    stored, hidden = -(-channels // 64) * 64, 2 * channels // 5
    w0, b0 = torch.zeros(5, stored, padded), torch.zeros(5, padded)
    w1, b1 = torch.zeros(5, padded, stored), torch.zeros(stored)
    w0[:, :channels, :hidden] = torch.randn(5, channels, hidden) / channels**0.5
    w1[:, :hidden, :channels] = torch.randn(5, hidden, channels) / channels**0.5
    b0[:, :hidden], b1[:channels] = torch.randn(5, hidden), torch.randn(channels)
    return w0.to(dtype), b0, w1.to(dtype), b1


def projections(channels: int, padded: int, dtype: Any) -> tuple[Any, Any]:
    depth = channels // 3
    w, b = torch.zeros(3, -(-channels // 64) * 64, padded), torch.zeros(3, padded)
    w[:, :channels, :depth] = torch.randn(3, channels, depth) / channels**0.5
    b[:, :depth] = torch.randn(3, depth)
    return w.to(dtype), b


@pytest.mark.parametrize(
    "n, h, w, channels, padded, part, dtype, variant",
    [
        (1, 16, 32, 60, 32, 24, torch.float16, {}),
        (2, 16, 16, 60, 32, 24, torch.bfloat16, {"WARPS": 4, "BLOCKS": 3}),
        (1, 32, 16, 60, 32, 24, torch.float16, {"WARPS": 2, "STAGES": 2}),
        (1, 16, 16, 180, 80, 64, torch.float16, {}),
        (1, 16, 16, 120, 48, 40, torch.float16, {"WARPS": 4}),
    ],
)
def test_tiled_lfe(n, h, w, channels, padded, part, dtype, variant) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    depth = 32 if part <= 32 else 64
    x, local = wide(n, h, w, channels, dtype), local_weights(channels, padded, dtype)
    values, queries = (projections(channels, depth, dtype) for _ in range(2))
    assert lfe.tile.suits(channels, 2 * channels // 5, dtype)
    for q_too in (True, False):
        out = torch.full_like(x, 7)
        v, q = (torch.full((n, h, w, 3 * part), 5.0, dtype=dtype) for _ in range(2))
        blob = lfe.tile.pack(local, values, queries if q_too else None, channels, part)
        emulate(lfe.tile.launch(x, blob, q_too, out, v, q, channels, **variant))
        double = [tuple(t.double() for t in pair) for pair in (local, values, queries)]
        expected = lfe.lfe(x.double(), double[0], double[1], double[2] if q_too else None, channels)  # type: ignore[arg-type]
        assert error(inner(out), expected[0]) < BOUND[dtype]
        assert error(v, expected[1][..., :part].reshape(v.shape)) < BOUND[dtype]
        if q_too:
            assert error(q, expected[2][..., :part].reshape(v.shape)) < BOUND[dtype]
        else:
            assert (q == 5).all()
        inner(out).fill_(7)
        assert (out == 7).all()


@pytest.mark.parametrize(
    "n, h, w, channels, part, dtype, variant",
    [
        (1, 32, 32, 60, 24, torch.float16, {}),
        (2, 16, 32, 60, 24, torch.bfloat16, {"WARPS": 16, "BLOCKS": 1, "EARLY": 0}),
        (1, 32, 16, 180, 64, torch.float16, {}),
        (1, 16, 16, 120, 40, torch.float16, {}),
    ],
)
@pytest.mark.parametrize("rolled", [False, True])
def test_tiled_attention(n, h, w, channels, part, dtype, variant, rolled) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    depth, stored = channels // 3, -(-channels // 64) * 64
    x, extra = (wide(n, h, w, channels, dtype) for _ in range(2))
    q, v = torch.zeros(2, n, h, w, 3, part)
    q[..., :depth] = torch.randn(n, h, w, 3, depth)
    v[..., :depth] = torch.randn(n, h, w, 3, depth)
    q, v = (t.reshape(n, h, w, 3 * part).to(dtype) for t in (q, v))
    weight, bias = torch.zeros(3, 64, stored), torch.zeros(stored)
    weight[:, :depth, :channels] = torch.randn(3, depth, channels) / 8
    bias[:channels] = torch.randn(channels)
    weights = weight.to(dtype), bias
    blob = window_attention.tile.pack(weights, channels, part)
    for add in (None, extra):
        expected = window_attention.window_attention(
            q.double(), v.double(), x.double(), (weights[0].double(), bias.double()), rolled,
            None if add is None else add.double(),
        )  # fmt: skip
        out = x.clone()
        emulate(window_attention.tile.launch(q, v, out, blob, out, channels, rolled, add, **variant))
        assert error(inner(out), expected) < BOUND[dtype]
        inner(out).zero_()
        assert not out.any()


@pytest.mark.parametrize(
    "n, h, w, colors, channels, scale, dtype, variant",
    [
        (1, 16, 32, 3, 60, 4, torch.float16, {}),
        (2, 32, 16, 3, 60, 2, torch.bfloat16, {"WARPS": 4, "STAGES": 2}),
        (1, 16, 16, 3, 180, 4, torch.float16, {}),
        (1, 16, 16, 1, 180, 2, torch.float16, {"STAGES": 2}),
    ],
)
def test_tiled_tail(n, h, w, colors, channels, scale, dtype, variant) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    x = wide(n, h, w, channels, dtype)
    made = max(16, 1 << (colors * scale**2 - 1).bit_length())
    weights = (torch.randn(9, x.shape[3], made) / 20).to(dtype), torch.randn(made)
    expected = upsample_tail.upsample_tail(
        x.double(), (weights[0].double(), weights[1].double()), colors, scale, 0.5
    )
    blob = upsample_tail.tile.pack(weights, channels, colors, scale, 0.5)
    out = torch.full((n, colors, h * scale, w * scale), float("nan"))
    emulate(upsample_tail.tile.launch(x, blob, out, scale, channels, **variant))
    assert error(out, expected) < 1e-6
