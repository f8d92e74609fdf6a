"""The 3x3 convolutions for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.conv3x3 import reference, sm90  # noqa: E402
from restort.kernels.conv3x3.triton import DOWN, UP  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import (  # noqa: E402
    BRAIN,
    HALF,
    convolution_weights,
    exact_convolution,
    needs_nvrtc,
    registers_and_spills,
)

BOUND = {HALF: 4e-4, BRAIN: 3e-3}
# As where pixels are many:
LARGE = {"PARTS": 2, "TAPS": 1, "SLOTS": 4, "DEFER": 1}
MANY_COLUMNS = {**LARGE, "PARTS": 1, "COLUMNS": 192}
FEW_COLUMNS = {**LARGE, "PARTS": 1, "COLUMNS": 48, "DEFER": 0}


def expected(mode, x, w, bias, extra):  # type: ignore[no-untyped-def]
    """The op in float64, as float32 of the reference would round."""
    y = exact_convolution(x, w, bias)
    if mode == DOWN:
        return torch.nn.functional.pixel_unshuffle(y, 2).permute(0, 2, 3, 1)
    n, rows, h, width = y.shape
    y = y.view(n, 2, 2, rows // 4, h, width).permute(0, 4, 1, 5, 2, 3)
    y = y.reshape(n, 2 * h, 2 * width, rows // 4)
    return y if extra is None else torch.cat([y, extra.double()], -1)


@pytest.mark.parametrize(
    "mode, n, h, w, c, rows, beside, dtype, overrides",
    [
        (DOWN, 1, 18, 20, 48, 24, False, HALF, {"PARTS": 2}),
        (DOWN, 2, 10, 18, 48, 24, False, BRAIN, {}),
        (DOWN, 1, 18, 34, 96, 48, False, HALF, {**LARGE, "COLUMNS": 48}),
        (DOWN, 1, 10, 18, 96, 48, False, BRAIN, FEW_COLUMNS),
        (DOWN, 1, 6, 10, 96, 48, False, BRAIN, {"COLUMNS": 48}),
        (DOWN, 1, 10, 6, 192, 96, False, HALF, {**LARGE, "COLUMNS": 96}),
        (DOWN, 1, 6, 4, 192, 96, False, HALF, {"COLUMNS": 96, "SLOTS": 2}),
        (DOWN, 2, 10, 6, 192, 96, False, BRAIN, {}),
        (UP, 1, 9, 19, 96, 192, True, HALF, MANY_COLUMNS),
        (UP, 2, 9, 3, 192, 384, False, BRAIN, MANY_COLUMNS),
        (UP, 1, 1, 1, 384, 96, False, BRAIN, {}),
        (UP, 1, 3, 17, 48, 96, True, HALF, {**LARGE, "COLUMNS": 96}),
        (UP, 1, 3, 17, 48, 96, True, HALF, {"TAPS": 9, "SLOTS": 1}),
        (UP, 2, 9, 2, 384, 96, True, HALF, {"COLUMNS": 96, "SLOTS": 2}),
        (UP, 1, 3, 5, 192, 384, False, HALF, {"WARPS": 4, "PARTS": 2}),
    ],
)
def test_sm90(mode, n, h, w, c, rows, beside, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    assert sm90.fits(mode, c, rows, dtype, 90)
    x, weights, bias = convolution_weights(n, h, w, c, rows, dtype)
    extra = torch.randn(n, 2 * h, 2 * w, rows // 4).to(dtype) if beside else None
    shape = (n, h // 2, w // 2, 4 * rows) if mode == DOWN else (n, 2 * h, 2 * w, rows // (2 if beside else 4))
    y = torch.full(shape, 7.0, dtype=dtype)
    blob = sm90.pack(weights, c, {**sm90.tiling(mode, c, rows, n, h, w), **overrides})
    emulate(sm90.launch(mode, x, blob, bias, y, extra=extra, **overrides))
    wanted = expected(mode, x, weights, bias, extra)
    assert ((y - wanted).norm() / wanted.norm()).item() < BOUND[dtype]
    assert (y - wanted).abs().max() < 0.05
    if beside:
        assert torch.equal(y[..., rows // 4 :], extra)
    made = reference.down(x, weights, bias) if mode == DOWN else reference.up(x, weights, bias, extra)
    assert made.shape == y.shape and torch.allclose(made.float(), y.float(), rtol=0.01, atol=0.01)


LAUNCHES = [
    (DOWN, 720, 1280, 48, 24), (DOWN, 64, 64, 48, 24), (DOWN, 360, 640, 96, 48), (DOWN, 184, 276, 96, 48),
    (DOWN, 180, 320, 192, 96), (DOWN, 92, 138, 192, 96), (DOWN, 32, 32, 192, 96),
    (UP, 360, 640, 96, 192), (UP, 180, 320, 192, 384), (UP, 90, 160, 384, 768), (UP, 64, 64, 192, 384),
    (UP, 8, 8, 384, 768), (UP, 360, 640, 48, 96),
]  # fmt: skip


@needs_nvrtc
@pytest.mark.parametrize("mode, h, w, c, rows", LAUNCHES)
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_sm90_compiles_without_spills(mode, h, w, c, rows, dtype) -> None:  # type: ignore[no-untyped-def]
    x = torch.empty(1, h, w, c, dtype=dtype, device="meta")
    bias = torch.empty(rows, device="meta")
    for extra in (x, None):
        one = sm90.launch(mode, x, x, bias, x, extra=extra)
        assert one.constants["SHARED"] * one.constants["BLOCKS"] <= (228 - one.constants["BLOCKS"]) * 1024
        registers, spilled = registers_and_spills(one, 90)
        assert registers and not spilled


def test_fits() -> None:
    assert not sm90.fits(UP, 96, 192, HALF, 100) and not sm90.fits(UP, 96, 192, torch.float32, 90)
    assert not sm90.fits(DOWN, 24, 12, HALF, 90)
    assert not sm90.pays(UP, 384, 768, 1, 2, 2, HALF, 90) and sm90.pays(UP, 384, 768, 1, 32, 32, HALF, 90)


def test_few_pixels_have_smaller_tiles() -> None:
    def chosen(mode, c, rows, *sizes):  # type: ignore[no-untyped-def]
        tilings = [sm90.tiling(mode, c, rows, 1, h, w) for h, w in sizes]
        return [(one["COLUMNS"], one["PARTS"], one["SLOTS"], one["DEFER"]) for one in tilings]

    assert chosen(DOWN, 192, 96, (180, 320), (96, 160), (92, 138), (64, 64), (8, 8)) == [
        (96, 2, 4, 1), (96, 1, 2, 0), (96, 1, 2, 0), (24, 1, 3, 0), (24, 1, 3, 0),
    ]  # fmt: skip
    assert chosen(DOWN, 96, 48, (360, 640), (184, 276), (128, 128), (16, 16)) == [
        (48, 1, 4, 0), (48, 2, 4, 1), (48, 1, 3, 0), (24, 1, 3, 0),
    ]  # fmt: skip
    assert chosen(DOWN, 48, 24, (720, 1280), (64, 64)) == [(24, 2, 1, 0), (24, 1, 1, 0)]
    assert chosen(UP, 384, 768, (90, 160), (46, 69), (32, 32)) == [
        (192, 1, 4, 1),
        (192, 1, 4, 1),
        (48, 1, 3, 0),
    ]
    assert chosen(UP, 192, 384, (180, 320), (92, 138), (64, 64)) == [
        (192, 1, 4, 1),
        (192, 1, 4, 1),
        (96, 1, 2, 0),
    ]
    assert chosen(UP, 96, 192, (360, 640), (128, 128)) == [(192, 1, 4, 1), (192, 1, 4, 1)]
    assert chosen(UP, 48, 96, (360, 640)) == [(96, 2, 4, 1)]
