"""The streamed attention kernel for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import cuda  # noqa: E402
from restort.kernels.stream_gram import stream_gram  # noqa: E402
from restort.kernels.stream_gram import wide as kernel  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.test_stream import BOUND, error  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16


def weights(c: int, dtype: Any) -> tuple[Any, Any, Any]:
    w = (torch.randn(3 * c, c) * c**-0.5).to(dtype)
    return w, torch.randn(2, 3 * c), (torch.randn(10, 3 * c) * 0.33).to(dtype)


@pytest.mark.parametrize(
    "n, h, w, c, heads, splits, dtype, centred, variant",
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
def test_wide(n, h, w, c, heads, splits, dtype, centred, variant) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    x = torch.randn(n, h, w, c).to(dtype)
    given = weights(c, dtype)
    v_expected, expected = stream_gram(x.double(), *(one.double() for one in given), heads, centred=centred)
    v, ch = torch.full_like(x, float("nan")), c // heads
    sums = torch.full((splits, n, heads, ch * (ch + 2)), float("nan"))
    emulate(kernel.launch(x, kernel.pack(*given), v, sums, centred=centred, **variant))
    assert error(v, v_expected) < BOUND[dtype]
    total = sums.double().sum(0)
    for part in (slice(0, ch * ch), slice(ch * ch, None)):
        assert error(total[..., part], expected[..., part]) < BOUND[dtype]


def test_fits_where_its_products_are() -> None:
    for channels, heads in ((48, 1), (96, 1), (96, 2), (192, 2), (192, 4)):
        assert kernel.fits(channels, heads, 90)
        assert not kernel.fits(channels, heads, 100)
        assert not kernel.fits(channels, heads, 89)
    assert not kernel.fits(384, 8, 90)
    assert not kernel.fits(96, 4, 90)


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("c, heads", [(48, 1), (96, 1), (96, 2), (192, 4)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_compiles(c, heads, dtype) -> None:  # type: ignore[no-untyped-def]
    x, ch = torch.zeros(1, 8, 16, c, dtype=dtype), c // heads
    one = kernel.launch(x, kernel.pack(*weights(c, dtype)), x, torch.zeros(1, 1, heads, ch * (ch + 2)))
    assert kernel.KERNEL.compile(one.constants, 90)
