"""The last 3x3 convolution for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.conv3x3_last import sm90  # noqa: E402
from restort.kernels.conv3x3_last.reference import conv3x3_last  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import (  # noqa: E402
    BRAIN,
    HALF,
    convolution_weights,
    exact_convolution,
    needs_nvrtc,
    registers_and_spills,
)


@pytest.mark.parametrize(
    "n, h, w, c, rows, beside, dtype, overrides",
    [
        (1, 17, 19, 96, 3, True, HALF, {}),
        (2, 8, 18, 96, 3, False, BRAIN, {"WARPS": 4, "TALL": 8}),
        (1, 16, 16, 48, 1, True, BRAIN, {"TALL": 12}),
        (1, 1, 33, 48, 2, True, HALF, {}),
    ],
)
def test_sm90(n, h, w, c, rows, beside, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    assert sm90.fits(c, rows, dtype, 90)
    x, weights, bias = convolution_weights(n, h, w, c, rows, dtype)
    image = torch.randn(n, rows, h, w) if beside else None
    y = torch.full((n, rows, h, w), 7.0)
    emulate(sm90.launch(x, sm90.pack(weights, c), bias, y, extra=image, **overrides))
    expected = exact_convolution(x, weights, bias)
    expected = expected if image is None else expected + image.double()
    assert ((y - expected).norm() / expected.norm()).item() < 1e-5
    assert (y - expected).abs().max() < 0.05
    reference = conv3x3_last(x, weights, bias, image)
    assert reference.shape == y.shape and torch.allclose(reference, y, rtol=0.01, atol=0.01)


@needs_nvrtc
@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_sm90_compiles_without_spills(rows, dtype) -> None:  # type: ignore[no-untyped-def]
    x = torch.empty(1, 720, 1280, 96, dtype=dtype, device="meta")
    bias = torch.empty(rows, device="meta")
    for extra in (x, None):
        one = sm90.launch(x, x, bias, x, extra=extra)
        assert one.constants["SHARED"] * one.constants["BLOCKS"] <= (228 - one.constants["BLOCKS"]) * 1024
        registers, spilled = registers_and_spills(one, 90)
        assert registers and not spilled


def test_fits() -> None:
    assert not sm90.fits(96, 4, HALF, 90) and not sm90.fits(96, 3, HALF, 100)
    assert sm90.pays(96, 3, 1, 256, 256, HALF, 90) and not sm90.pays(96, 3, 1, 64, 64, HALF, 90)
