"""The first 3x3 convolution in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.conv3x3_first import sm80  # noqa: E402
from restort.kernels.conv3x3_first.reference import conv3x3_first  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import BRAIN, HALF, needs_nvrtc, registers_and_spills  # noqa: E402


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
def test_sm80(n, h, w, c, rows, dtype, warps) -> None:  # type: ignore[no-untyped-def]
    assert sm80.fits(c, rows, dtype, 80)
    torch.manual_seed(h)
    image, weights = torch.rand(n, c, h, w), torch.randn(rows, 32)
    y = torch.full((n, h, w, rows), 7.0, dtype=dtype)
    emulate(sm80.launch(image, sm80.pack(weights, c, dtype), y, WARPS=warps))
    wanted = conv3x3_first(image.double(), weights.double(), torch.float64)
    once = wanted.to(dtype)  # nothing but the last rounding shows
    assert (y - wanted).norm() < 1.01 * (once - wanted).norm()


@needs_nvrtc
@pytest.mark.parametrize("capability", [80, 90])
def test_sm80_compiles_without_spills(capability: int) -> None:
    image = torch.empty(1, 3, 720, 1280, device="meta")
    for dtype in (HALF, BRAIN):
        one = sm80.launch(image, image, torch.empty(1, 720, 1280, 48, dtype=dtype, device="meta"))
        registers, spilled = registers_and_spills(one, capability)
        assert registers and not spilled


def test_fits() -> None:
    assert not sm80.fits(6, 48, HALF, 90) and not sm80.fits(3, 48, torch.float32, 90)
