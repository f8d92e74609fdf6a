"""The 3x3 convolutions for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import aot, cuda  # noqa: E402
from restort.kernels.conv3x3 import first_tile, reference, tile  # noqa: E402
from restort.kernels.conv3x3.kernel import DOWN, LAST, UP  # noqa: E402
from tests.emulator import emulate  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
BOUND = {HALF: 4e-4, BRAIN: 3e-3}
# As where pixels are many:
LARGE = {"PARTS": 2, "TAPS": 1, "SLOTS": 4, "DEFER": 1}
WIDE = {**LARGE, "PARTS": 1, "COLUMNS": 192}
NARROW = {**LARGE, "PARTS": 1, "COLUMNS": 48, "DEFER": 0}


def expected(mode, x, w, bias, extra):  # type: ignore[no-untyped-def]
    """In float64, as float32 of the reference would round."""
    n, h, wide, c = x.shape
    kernel = w[:, :, : 3 * c].double().view(-1, 3, 3, c).permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(x.double().permute(0, 3, 1, 2), kernel, bias.double(), padding=1)
    rows = len(w)
    if mode == DOWN:
        return torch.nn.functional.pixel_unshuffle(y, 2).permute(0, 2, 3, 1)
    if mode == LAST:
        return y if extra is None else y + extra.double()
    y = y.view(n, 2, 2, rows // 4, h, wide).permute(0, 4, 1, 5, 2, 3).reshape(n, 2 * h, 2 * wide, rows // 4)
    return y if extra is None else torch.cat([y, extra.double()], -1)


def case(mode, n, h, w, c, rows, beside, dtype):  # type: ignore[no-untyped-def]
    torch.manual_seed(h * w + c)
    x = torch.randn(n, h, w, c).to(dtype)
    weights = torch.zeros(rows, 3, -(-3 * c // 32) * 32)
    weights[:, :, : 3 * c] = torch.randn(rows, 3, 3 * c) * (9 * c) ** -0.5
    weights, bias = weights.to(dtype), torch.randn(rows)
    if mode == LAST:
        extra = torch.randn(n, rows, h, w) if beside else None
        y = torch.full((n, rows, h, w), 7.0)
    elif mode == DOWN:
        extra, y = None, torch.full((n, h // 2, w // 2, 4 * rows), 7.0, dtype=dtype)
    else:
        extra = torch.randn(n, 2 * h, 2 * w, rows // 4).to(dtype) if beside else None
        y = torch.full((n, 2 * h, 2 * w, rows // (2 if beside else 4)), 7.0, dtype=dtype)
    return x, weights, bias, extra, y


@pytest.mark.parametrize(
    "mode, n, h, w, c, rows, beside, dtype, variant",
    [
        (DOWN, 1, 18, 20, 48, 24, False, HALF, {"PARTS": 2}),
        (DOWN, 2, 10, 18, 48, 24, False, BRAIN, {}),
        (DOWN, 1, 18, 34, 96, 48, False, HALF, {**LARGE, "COLUMNS": 48}),
        (DOWN, 1, 10, 18, 96, 48, False, BRAIN, NARROW),
        (DOWN, 1, 6, 10, 96, 48, False, BRAIN, {"COLUMNS": 48}),
        (DOWN, 1, 10, 6, 192, 96, False, HALF, {**LARGE, "COLUMNS": 96}),
        (DOWN, 1, 6, 4, 192, 96, False, HALF, {"COLUMNS": 96, "SLOTS": 2}),
        (DOWN, 2, 10, 6, 192, 96, False, BRAIN, {}),
        (UP, 1, 9, 19, 96, 192, True, HALF, WIDE),
        (UP, 2, 9, 3, 192, 384, False, BRAIN, WIDE),
        (UP, 1, 1, 1, 384, 96, False, BRAIN, {}),
        (UP, 1, 3, 17, 48, 96, True, HALF, {**LARGE, "COLUMNS": 96}),
        (UP, 1, 3, 17, 48, 96, True, HALF, {"TAPS": 9, "SLOTS": 1}),
        (UP, 2, 9, 2, 384, 96, True, HALF, {"COLUMNS": 96, "SLOTS": 2}),
        (UP, 1, 3, 5, 192, 384, False, HALF, {"WARPS": 4, "PARTS": 2}),
        (LAST, 1, 17, 19, 96, 3, True, HALF, {}),
        (LAST, 2, 8, 18, 96, 3, False, BRAIN, {"WARPS": 4, "TALL": 8}),
        (LAST, 1, 16, 16, 48, 1, True, BRAIN, {"TALL": 12}),
        (LAST, 1, 1, 33, 48, 2, True, HALF, {}),
    ],
)
def test_tile(mode, n, h, w, c, rows, beside, dtype, variant) -> None:  # type: ignore[no-untyped-def]
    assert tile.fits(mode, c, rows, dtype, 90)
    x, weights, bias, extra, y = case(mode, n, h, w, c, rows, beside, dtype)
    blob = tile.pack(mode, weights, c, {**tile.cut(mode, c, rows, n, h, w), **variant})
    emulate(tile.launch(mode, x, blob, bias, y, extra=extra, **variant))
    wanted = expected(mode, x, weights, bias, extra)
    assert ((y - wanted).norm() / wanted.norm()).item() < (1e-5 if mode == LAST else BOUND[dtype])
    assert (y - wanted).abs().max() < 0.05
    if mode == UP and beside:
        assert torch.equal(y[..., rows // 4 :], extra)
    made = {DOWN: reference.down, UP: reference.up, LAST: reference.last}[mode](
        x, weights, bias, *(() if mode == DOWN else (extra,))
    )
    assert made.shape == y.shape and torch.allclose(made.float(), y.float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    "n, h, w, c, rows, dtype, warps",
    [
        (1, 17, 33, 3, 48, HALF, 8),
        (2, 9, 40, 3, 48, BRAIN, 4),
        (1, 3, 5, 1, 24, HALF, 8),
        (1, 16, 32, 3, 40, BRAIN, 8),
        (1, 1, 1, 1, 64, HALF, 4),
    ],
)
def test_first(n, h, w, c, rows, dtype, warps) -> None:  # type: ignore[no-untyped-def]
    assert first_tile.fits(c, rows, dtype, 80)
    torch.manual_seed(h)
    image, weights = torch.rand(n, c, h, w), torch.randn(rows, 32)
    y = torch.full((n, h, w, rows), 7.0, dtype=dtype)
    emulate(first_tile.launch(image, first_tile.pack(weights, c, dtype), y, warps=warps))
    wanted = reference.first(image.double(), weights.double(), torch.float64)
    once = wanted.to(dtype)  # nothing but the last rounding shows
    assert (y - wanted).norm() < 1.01 * (once - wanted).norm()


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("capability", [80, 90])
def test_first_compiles_without_spills(capability: int) -> None:
    image = torch.empty(1, 3, 720, 1280, device="meta")
    for dtype in (HALF, BRAIN):
        one = first_tile.launch(image, image, torch.empty(1, 720, 1280, 48, dtype=dtype, device="meta"))
        registers, spilled = aot.resources(one.kernel.compile(one.constants, capability))
        assert registers and not spilled


LAUNCHES = [
    (DOWN, 720, 1280, 48, 24), (DOWN, 64, 64, 48, 24), (DOWN, 360, 640, 96, 48), (DOWN, 184, 276, 96, 48),
    (DOWN, 180, 320, 192, 96), (DOWN, 92, 138, 192, 96), (DOWN, 32, 32, 192, 96),
    (UP, 360, 640, 96, 192), (UP, 180, 320, 192, 384), (UP, 90, 160, 384, 768), (UP, 64, 64, 192, 384),
    (UP, 8, 8, 384, 768), (UP, 360, 640, 48, 96), (LAST, 720, 1280, 96, 3), (LAST, 720, 1280, 96, 1),
]  # fmt: skip


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("mode, h, w, c, rows", LAUNCHES)
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_compiles_without_spills(mode, h, w, c, rows, dtype) -> None:  # type: ignore[no-untyped-def]
    x = torch.empty(1, h, w, c, dtype=dtype, device="meta")
    bias = torch.empty(rows, device="meta")
    for extra in (x, None):
        one = tile.launch(mode, x, x, bias, x, extra=extra)
        assert one.constants["SHARED"] * one.constants["BLOCKS"] <= (228 - one.constants["BLOCKS"]) * 1024
        registers, spilled = aot.resources(one.kernel.compile(one.constants, 90))
        assert registers and not spilled


def test_fits() -> None:
    assert not tile.fits(UP, 96, 192, HALF, 100) and not tile.fits(UP, 96, 192, torch.float32, 90)
    assert not tile.fits(DOWN, 24, 12, HALF, 90) and not tile.fits(LAST, 96, 4, HALF, 90)
    assert not first_tile.fits(6, 48, HALF, 90) and not first_tile.fits(3, 48, torch.float32, 90)
    assert not tile.pays(UP, 384, 768, 1, 2, 2, HALF, 90) and tile.pays(UP, 384, 768, 1, 32, 32, HALF, 90)


def test_few_pixels_are_cut_smaller() -> None:
    def cut(mode, c, rows, *sizes):  # type: ignore[no-untyped-def]
        ways = [tile.cut(mode, c, rows, 1, h, w) for h, w in sizes]
        return [(how["COLUMNS"], how["PARTS"], how["SLOTS"], how["DEFER"]) for how in ways]

    assert cut(DOWN, 192, 96, (180, 320), (96, 160), (92, 138), (64, 64), (8, 8)) == [
        (96, 2, 4, 1), (96, 1, 2, 0), (96, 1, 2, 0), (24, 1, 3, 0), (24, 1, 3, 0),
    ]  # fmt: skip
    assert cut(DOWN, 96, 48, (360, 640), (184, 276), (128, 128), (16, 16)) == [
        (48, 1, 4, 0), (48, 2, 4, 1), (48, 1, 3, 0), (24, 1, 3, 0),
    ]  # fmt: skip
    assert cut(DOWN, 48, 24, (720, 1280), (64, 64)) == [(24, 2, 1, 0), (24, 1, 1, 0)]
    assert cut(UP, 384, 768, (90, 160), (46, 69), (32, 32)) == [(192, 1, 4, 1), (192, 1, 4, 1), (48, 1, 3, 0)]
    assert cut(UP, 192, 384, (180, 320), (92, 138), (64, 64)) == [
        (192, 1, 4, 1),
        (192, 1, 4, 1),
        (96, 1, 2, 0),
    ]
    assert cut(UP, 96, 192, (360, 640), (128, 128)) == [(192, 1, 4, 1), (192, 1, 4, 1)]
    assert cut(UP, 48, 96, (360, 640)) == [(96, 2, 4, 1)]
