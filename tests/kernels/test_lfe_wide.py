"""ELAN's local feature extraction for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import aot, cuda, lfe  # noqa: E402
from restort.kernels.lfe import wide as kernel  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.test_elan_cuda import BOUND, error, inner, local_weights, projections, wide  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    "n, h, w, channels, padded, part, dtype, variant",
    [
        (1, 32, 48, 60, 32, 24, HALF, {"SLOTS": 2}),  # has tiles that touch no edge
        (2, 16, 16, 60, 32, 24, BRAIN, {"WARPS": 16, "SLOTS": 3, "MIX": 0}),
        (1, 16, 16, 60, 32, 24, HALF, {}),
        (1, 16, 32, 180, 80, 64, HALF, {"processors": 2}),
        (1, 16, 16, 180, 80, 64, BRAIN, {"CLUSTER": 1, "OVERLAP": 1, "PERSIST": 0}),
    ],
)
def test_wide(n, h, w, channels, padded, part, dtype, variant) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    depth = 32 if part <= 32 else 64
    x, local = wide(n, h, w, channels, dtype), local_weights(channels, padded, dtype)
    values, queries = (projections(channels, depth, dtype) for _ in range(2))
    assert kernel.fits(channels, part, 90)
    double = [tuple(t.double() for t in pair) for pair in (local, values, queries)]
    expected = lfe.lfe(x.double(), double[0], double[1], double[2], channels)  # type: ignore[arg-type]
    for q_too in (True, False):
        out = torch.full_like(x, 7)
        v, q = (torch.full((n, h, w, 3 * part), 5.0, dtype=dtype) for _ in range(2))
        blob = kernel.pack(local, values, queries if q_too else None, channels, part)
        emulate(kernel.launch(x, blob, q_too, out, v, q, channels, **variant))
        assert error(inner(out), expected[0]) < BOUND[dtype]
        assert not inner(out)[..., channels:].any()
        assert error(v, expected[1][..., :part].reshape(v.shape)) < BOUND[dtype]
        if q_too:
            assert error(q, expected[2][..., :part].reshape(v.shape)) < BOUND[dtype]
        else:
            assert (q == 5).all()
        inner(out).fill_(7)
        assert (out == 7).all()


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("channels, part", [(60, 24), (180, 64)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_compiles_without_spills(channels, part, dtype) -> None:  # type: ignore[no-untyped-def]
    x, v = torch.zeros(1, 20, 20, -(-channels // 64) * 64, dtype=dtype), torch.zeros(1, 16, 16, 3 * part)
    for has_q in (True, False):
        one = kernel.launch(x, x, has_q, x, v, v, channels, OVERLAP=1)
        registers, spilled = aot.resources(kernel.KERNEL.compile(one.constants, 90))
        assert registers and not spilled


def test_fits() -> None:
    assert not kernel.fits(60, 24, 100) and not kernel.fits(120, 40, 90)
    assert cuda.SPECIFIC[90] == "a"
