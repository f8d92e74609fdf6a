"""Local feature extraction: Triton's kernel in its interpreter, those in CUDA C++ in the emulator."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import nvrtc  # noqa: E402
from restort.kernels.lfe import sm80, sm90  # noqa: E402
from restort.kernels.lfe.reference import lfe  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.fakes import triton_interpreter  # noqa: E402
from tests.kernels.cases import (  # noqa: E402
    BRAIN,
    HALF,
    error,
    inner,
    local_weights,
    needs_nvrtc,
    padded,
    projections,
    registers_and_spills,
)
from tests.kernels.elan_in_triton import COMMON, interpreted  # noqa: E402

BOUND = {HALF: 5e-4, BRAIN: 4e-3}


TRITON = """
from restort.kernels.lfe import triton
from restort.kernels.lfe.reference import lfe

for dtype, n, h, w, channels, hidden, part, depth, overrides in [
    (torch.float32, 2, 16, 32, 60, 32, 24, 32, {}),
    (torch.float16, 1, 32, 16, 60, 32, 24, 32, dict(TH=8, TW=16, warps=4, stages=1, AHEAD=1)),
    (torch.bfloat16, 1, 16, 16, 60, 32, 24, 32, dict(TH=16, TW=16, warps=4, stages=1, AHEAD=1)),
    (torch.float32, 1, 16, 16, 180, 80, 64, 64, {}),
    (torch.float32, 1, 16, 16, 96, 48, 32, 32, dict(TH=4, TW=16, warps=4, stages=1, AHEAD=1)),
]:
    x = padded(n, h, w, channels, dtype)
    stored = x.shape[3]
    def weights(*shape):
        return (torch.randn(*shape) / stored**0.5).to(dtype)
    local = weights(5, stored, hidden), torch.randn(5, hidden), weights(5, hidden, stored), torch.randn(stored)
    values, queries = ((weights(3, stored, depth), torch.randn(3, depth)) for _ in range(2))
    for q_too in (True, False):
        out = torch.full_like(x, 7)
        v, q = (torch.zeros(n, h, w, 3 * part, dtype=dtype) for _ in range(2))
        triton.launch(x, local, values, queries if q_too else None, out, v, q, channels, **overrides)()
        expected = lfe(x, local, values, queries, channels)
        near(inner(out), expected[0], dtype, "x")
        near(v, expected[1][..., :part].reshape(v.shape), dtype, "v")
        if q_too:
            near(q, expected[2][..., :part].reshape(v.shape), dtype, "q")
        else:
            assert not q.any()
        assert torch.equal(only_border(out), only_border(torch.full_like(x, 7)))
print("agree")
"""


@interpreted
def test_triton() -> None:
    assert triton_interpreter.run(COMMON + TRITON) == "agree"


@pytest.mark.parametrize(
    "n, h, w, channels, width, part, dtype, overrides",
    [
        (1, 16, 32, 60, 32, 24, HALF, {}),
        (2, 16, 16, 60, 32, 24, BRAIN, {"WARPS": 4, "BLOCKS": 3}),
        (1, 32, 16, 60, 32, 24, HALF, {"WARPS": 2, "STAGES": 2}),
        (1, 16, 16, 180, 80, 64, HALF, {}),
        (1, 16, 16, 120, 48, 40, HALF, {"WARPS": 4}),
    ],
)
def test_sm80(n, h, w, channels, width, part, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    depth = 32 if part <= 32 else 64
    x, local = padded(n, h, w, channels, dtype), local_weights(channels, width, dtype)
    values, queries = (projections(channels, depth, dtype) for _ in range(2))
    assert sm80.supports(channels, 2 * channels // 5, dtype)
    for q_too in (True, False):
        out = torch.full_like(x, 7)
        v, q = (torch.full((n, h, w, 3 * part), 5.0, dtype=dtype) for _ in range(2))
        blob = sm80.pack(local, values, queries if q_too else None, channels, part)
        emulate(sm80.launch(x, blob, q_too, out, v, q, channels, **overrides))
        double = [tuple(t.double() for t in pair) for pair in (local, values, queries)]
        expected = lfe(x.double(), double[0], double[1], double[2] if q_too else None, channels)  # type: ignore[arg-type]
        assert error(inner(out), expected[0]) < BOUND[dtype]
        assert error(v, expected[1][..., :part].reshape(v.shape)) < BOUND[dtype]
        if q_too:
            assert error(q, expected[2][..., :part].reshape(v.shape)) < BOUND[dtype]
        else:
            assert (q == 5).all()
        inner(out).fill_(7)
        assert (out == 7).all()


@pytest.mark.parametrize(
    "n, h, w, channels, width, part, dtype, overrides",
    [
        (1, 32, 48, 180, 80, 64, HALF, {}),  # has tiles that touch no edge
        (1, 16, 32, 180, 80, 64, HALF, {"num_sms": 2}),
        (1, 16, 16, 180, 80, 64, BRAIN, {"CLUSTER": 1, "OVERLAP": 1}),
    ],
)
def test_padded(n, h, w, channels, width, part, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    depth = 32 if part <= 32 else 64
    x, local = padded(n, h, w, channels, dtype), local_weights(channels, width, dtype)
    values, queries = (projections(channels, depth, dtype) for _ in range(2))
    assert sm90.fits(channels, part, 90)
    double = [tuple(t.double() for t in pair) for pair in (local, values, queries)]
    expected = lfe(x.double(), double[0], double[1], double[2], channels)  # type: ignore[arg-type]
    for q_too in (True, False):
        out = torch.full_like(x, 7)
        v, q = (torch.full((n, h, w, 3 * part), 5.0, dtype=dtype) for _ in range(2))
        blob = sm90.pack(local, values, queries if q_too else None, channels, part)
        emulate(sm90.launch(x, blob, q_too, out, v, q, channels, **overrides))
        assert error(inner(out), expected[0]) < BOUND[dtype]
        assert not inner(out)[..., channels:].any()
        assert error(v, expected[1][..., :part].reshape(v.shape)) < BOUND[dtype]
        if q_too:
            assert error(q, expected[2][..., :part].reshape(v.shape)) < BOUND[dtype]
        else:
            assert (q == 5).all()
        inner(out).fill_(7)
        assert (out == 7).all()


@needs_nvrtc
@pytest.mark.parametrize("channels, part", [(180, 64)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_sm90_compiles_without_spills(channels, part, dtype) -> None:  # type: ignore[no-untyped-def]
    x, v = torch.zeros(1, 20, 20, -(-channels // 64) * 64, dtype=dtype), torch.zeros(1, 16, 16, 3 * part)
    for has_q in (True, False):
        one = sm90.launch(x, x, has_q, x, v, v, channels, OVERLAP=1)
        registers, spilled = registers_and_spills(one, 90)
        assert registers and not spilled


def test_sm90_fits() -> None:
    assert not sm90.fits(60, 24, 100) and not sm90.fits(120, 40, 90)
    assert nvrtc.ARCH_SPECIFIC[90] == "a"
