"""LayerNorm and expansion for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.layernorm_conv1x1 import sm90  # noqa: E402
from restort.kernels.layernorm_conv1x1.reference import EPSILON  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import BRAIN, HALF, error, needs_nvrtc, registers_and_spills  # noqa: E402

BOUND = {HALF: 5e-4, BRAIN: 4e-3}
C = 384


def weights(rows: int, dtype: Any, device: str = "cpu") -> tuple[Any, Any]:
    w = (torch.randn(rows, C, device=device) * C**-0.5).to(dtype)
    return w, torch.stack([w.float().sum(1), torch.randn(rows, device=device)])


def exact(x: Any, w: Any, affine: Any) -> Any:
    x = x.double()
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x @ w.double().T - mean * affine[0]) / (variance + EPSILON).sqrt() + affine[1]


@pytest.mark.parametrize(
    "pixels, rows, dtype, num_sms, overrides",
    [
        (1, 64, HALF, 132, {}),
        (257, 192, HALF, 4, {}),  # 9 items for 4 blocks; of the last tile one pixel is there
        (140, 640, BRAIN, 2, {}),  # the ring comes round twice
        (256, 128, BRAIN, 3, {"OVERLAP": 1}),
        (129, 384, HALF, 4, {"COLUMNS": 128, "PARTS": 4, "DEPTH": 2}),
        (128, 192, BRAIN, 1, {"COLUMNS": 96, "PARTS": 1, "DEPTH": 1}),
    ],
)
def test_sm90(pixels, rows, dtype, num_sms, overrides) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(2)
    x = torch.randn(pixels, C) * (0.1 + torch.rand(pixels, 1)) + 2 * torch.randn(pixels, 1)
    x = x.to(dtype).view(1, 1, pixels, C)
    w, affine = weights(rows, dtype)
    y = torch.full((1, 1, pixels, rows), float("nan"), dtype=dtype)
    packed = sm90.pack(w, overrides.get("COLUMNS", 0))
    emulate(sm90.launch(x, packed, affine, y, num_sms=num_sms, **overrides))
    found = error(y, exact(x, w, affine))
    assert found < BOUND[dtype], found


def test_constant_pixels_and_rows_of_their_own() -> None:
    """A pixel without variance gives the shift; each row of w comes out where it belongs, pixels apart from others."""
    x = torch.zeros(130, C, dtype=HALF)
    x[7], x[129] = 3.0, torch.arange(C) % 5 - 2
    w, affine = torch.zeros(256, C, dtype=HALF), torch.zeros(2, 256)
    w[torch.arange(256), torch.arange(256) + 100] = torch.arange(256).half() / 64
    affine[0], affine[1] = w.float().sum(1), torch.arange(256)
    y = torch.full((130, 256), float("nan"), dtype=HALF)
    emulate(sm90.launch(x, sm90.pack(w), affine, y, num_sms=2))
    expected = exact(x, w, affine)
    assert (y[:129].double() - expected[:129]).abs().max() < 0.13  # a step at 255
    assert (y[129].double() - expected[129]).abs().max() < 0.2


@needs_nvrtc
@pytest.mark.parametrize("rows", [1152, 2048])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_compiles_without_spills(rows, dtype) -> None:  # type: ignore[no-untyped-def]
    w, affine = weights(rows, dtype, "meta")
    x, y = (torch.empty(500, count, dtype=dtype, device="meta") for count in (C, rows))
    one = sm90.launch(x, sm90.pack(w), affine, y)
    registers, spilled = registers_and_spills(one, 90)
    assert registers == 168 and not spilled  # with fewer, the groups would wait for ever for more


def test_fits_and_shares_out() -> None:
    assert sm90.fits(384, 2048, 90) and sm90.fits(384, 1152, 90)
    assert not sm90.fits(384, 2048, 100) and not sm90.fits(192, 1024, 90)
    assert sm90.fits(384, 1152 + 64, 90) and not sm90.fits(384, 1152 + 32, 90)
    w, affine = weights(1152, HALF, "meta")
    for pixels, blocks in ((14400, 132), (896, 126), (3, 18)):
        x, y = (torch.empty(pixels, count, dtype=HALF, device="meta") for count in (C, 1152))
        assert sm90.launch(x, sm90.pack(w), affine, y).grid == (blocks,)
