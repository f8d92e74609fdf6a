"""mdta_gram in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.mdta_gram import sm80, sm90  # noqa: E402
from restort.kernels.mdta_gram.reference import mdta_gram  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import BRAIN, HALF, error, needs_nvrtc  # noqa: E402

BOUND = {HALF: 1.5e-3, BRAIN: 1.2e-2}


def weights(c: int, dtype: Any) -> tuple[Any, Any, Any]:
    w = (torch.randn(3 * c, c) * c**-0.5).to(dtype)
    return w, torch.randn(2, 3 * c), (torch.randn(10, 3 * c) * 0.33).to(dtype)


def check(x, given, heads, splits, centred, launch) -> None:  # type: ignore[no-untyped-def]
    """Run `launch(v, sums)` in the emulator and compare both results with the reference."""
    v_expected, expected = mdta_gram(x.double(), *(one.double() for one in given), heads, centred=centred)
    v, ch = torch.full_like(x, float("nan")), x.shape[-1] // heads
    sums = torch.full((splits, len(x), heads, ch * (ch + 2)), float("nan"))
    emulate(launch(v, sums))
    assert error(v, v_expected) < BOUND[x.dtype]
    total = sums.double().sum(0)
    for part in (slice(0, ch * ch), slice(ch * ch, None)):
        assert error(total[..., part], expected[..., part]) < BOUND[x.dtype]


@pytest.mark.parametrize(
    "n, h, w, c, heads, splits, dtype, centred, overrides",
    [
        (2, 11, 19, 48, 1, 3, HALF, True, {}),
        (1, 20, 18, 96, 1, 2, HALF, True, {}),
        (1, 9, 17, 96, 2, 1, BRAIN, False, {}),
        (1, 25, 16, 48, 1, 1, BRAIN, True, {"CHUNK": 16}),
        (1, 9, 15, 192, 4, 1, HALF, True, {}),
        (1, 9, 18, 96, 2, 2, HALF, True, {"CHUNK": 32, "PART_K": 48}),
        (1, 35, 20, 96, 1, 1, HALF, True, {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
        (1, 9, 33, 48, 1, 2, HALF, False, {"CHUNK": 16, "PART_K": 24, "BLOCKS": 3}),
        (1, 9, 17, 192, 4, 1, BRAIN, True, {"WARPS": 8, "PART_K": 24}),
        (1, 9, 17, 192, 2, 1, HALF, True, {}),
        (1, 35, 20, 96, 1, 1, HALF, True, {"WARPS": 12, "TALL": 16, "PART_K": 16, "BLOCKS": 1}),
        (1, 35, 20, 48, 1, 2, HALF, True, {"WARPS": 12, "TALL": 16, "PART_K": 16, "BLOCKS": 1}),
    ],
)
def test_sm80(n, h, w, c, heads, splits, dtype, centred, overrides) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    x, given = torch.randn(n, h, w, c).to(dtype), weights(c, dtype)

    def launch(v: Any, sums: Any) -> Any:
        return sm80.launch(x, *given, v, sums, centred=centred, **overrides)

    check(x, given, heads, splits, centred, launch)


@pytest.mark.parametrize(
    "n, h, w, c, heads, splits, dtype, centred, overrides",
    [
        (1, 25, 49, 96, 1, 5, HALF, True, {}),  # has tiles that touch no edge
        (1, 8, 16, 96, 1, 2, BRAIN, True, {}),  # the second block has no tile
        (2, 9, 17, 96, 2, 3, BRAIN, False, {"AHEAD": 1}),
        (1, 19, 33, 96, 1, 2, HALF, True, {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
        (1, 19, 18, 96, 2, 1, HALF, True, {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
        (1, 33, 19, 96, 1, 2, HALF, True, {"WARPS": 12, "TALL": 16, "BLOCKS": 1}),
        (1, 19, 18, 96, 2, 1, BRAIN, True, {"WARPS": 12, "TALL": 16, "BLOCKS": 1}),
        (2, 11, 19, 48, 1, 3, HALF, True, {}),
        (1, 41, 33, 48, 1, 1, BRAIN, True, {"GRAM": 1}),
        (1, 25, 18, 48, 1, 2, HALF, False, {"TALL": 12}),
        (1, 1, 33, 48, 1, 2, BRAIN, False, {}),
        (1, 9, 17, 192, 4, 1, HALF, True, {}),
        (1, 17, 9, 192, 2, 2, BRAIN, False, {}),
        (1, 9, 15, 192, 4, 2, HALF, True, {"WARPS": 8}),
    ],
)
def test_sm90(n, h, w, c, heads, splits, dtype, centred, overrides) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    x, given = torch.randn(n, h, w, c).to(dtype), weights(c, dtype)

    def launch(v: Any, sums: Any) -> Any:
        return sm90.launch(x, sm90.pack(*given), v, sums, centred=centred, **overrides)

    check(x, given, heads, splits, centred, launch)


def test_sm90_fits_where_its_products_are() -> None:
    for channels, heads in ((48, 1), (96, 1), (96, 2), (192, 2), (192, 4)):
        assert sm90.fits(channels, heads, 90)
        assert not sm90.fits(channels, heads, 100)
        assert not sm90.fits(channels, heads, 89)
    assert not sm90.fits(384, 8, 90)
    assert not sm90.fits(96, 4, 90)


@needs_nvrtc
@pytest.mark.parametrize("c, heads", [(48, 1), (96, 1), (96, 2), (192, 4)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_sm90_compiles(c, heads, dtype) -> None:  # type: ignore[no-untyped-def]
    x, ch = torch.zeros(1, 8, 16, c, dtype=dtype), c // heads
    one = sm90.launch(x, sm90.pack(*weights(c, dtype)), x, torch.zeros(1, 1, heads, ch * (ch + 2)))
    assert one.kernel.compile(one.constants, 90)
