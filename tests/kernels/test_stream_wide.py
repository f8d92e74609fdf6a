"""The streamed feed-forward kernel for Hopper, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import cuda  # noqa: E402
from restort.kernels.stream_ffn import stream_ffn  # noqa: E402
from restort.kernels.stream_ffn import wide as kernel  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.test_stream import BOUND, error, ffn_case, wide  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    "n, h, w, c, f, dtype, apply, biases, centred, variant",
    [
        (1, 25, 49, 96, 64, HALF, True, True, True, {}),  # has tiles that touch no edge
        (1, 8, 16, 96, 256, HALF, True, False, True, {}),
        (2, 9, 17, 96, 64, BRAIN, True, True, False, {"AHEAD": 1}),
        (1, 19, 33, 96, 128, HALF, True, True, True, {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
        (2, 11, 19, 48, 128, HALF, True, True, True, {}),
        (1, 1, 33, 48, 64, BRAIN, False, False, True, {"GELU": 0}),
        (1, 17, 7, 48, 64, HALF, False, True, False, {"GELU": 1}),
        (1, 9, 17, 192, 128, HALF, True, True, True, {}),
    ],
)
def test_wide(n, h, w, c, f, dtype, apply, biases, centred, variant) -> None:  # type: ignore[no-untyped-def]
    case = ffn_case(n, h, w, c, f, dtype, apply)
    if not biases:
        case["fold_b"] = case["out_b"] = None
    expected = stream_ffn(**wide(case), centred=centred)
    out = torch.full_like(case["x"], float("nan"))
    weights = kernel.pack(case["w"], case["affine"], case["dw"], case["out_w"])
    others = {name: case[name] for name in ("x", "v", "fold", "fold_b", "out_b")}
    emulate(kernel.launch(**others, weights=weights, out=out, centred=centred, **variant))
    assert error(out, expected) < BOUND[dtype]


def test_fits_where_its_products_are() -> None:
    for channels, hidden in ((48, 128), (96, 256), (192, 512)):
        assert kernel.fits(channels, hidden, 90)
        assert not kernel.fits(channels, hidden, 100)
        assert not kernel.fits(channels, hidden, 89)
    assert not kernel.fits(384, 1024, 90)
    assert not kernel.fits(96, 32, 90)


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("c, f", [(48, 128), (96, 256), (192, 512)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_compiles(c, f, dtype) -> None:  # type: ignore[no-untyped-def]
    case = ffn_case(1, 8, 16, c, f, dtype, True)
    weights = kernel.pack(case["w"], case["affine"], case["dw"], case["out_w"])
    one = kernel.launch(case["x"], case["v"], case["fold"], case["fold_b"], weights, case["out_b"], case["x"])
    assert kernel.KERNEL.compile(one.constants, 90)
