"""GDFN in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.gdfn import sm80, sm90  # noqa: E402
from restort.kernels.gdfn.reference import gdfn  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import BRAIN, HALF, error, needs_nvrtc  # noqa: E402

BOUND = {HALF: 1.5e-3, BRAIN: 1.2e-2}


def case(n: int, h: int, w: int, c: int, f: int, dtype: Any, biases: bool = True) -> dict[str, Any]:
    """Inputs of the reference with about unit activations, in the types the kernels take."""
    torch.manual_seed(0)

    def draw(*shape: int, scale: float = 1.0, kind: Any = dtype) -> Any:
        return (torch.randn(*shape) * scale).to(kind)

    return {
        "x": draw(n, h, w, c),
        "v": draw(n, h, w, c),
        "attention": draw(n, c, c, scale=c**-0.5),
        "attention_b": draw(c, kind=torch.float32) if biases else None,
        "w": draw(2 * f, c, scale=c**-0.5),
        "affine": draw(2, 2 * f, kind=torch.float32),
        "dw": draw(10, 2 * f, scale=0.33),
        "out_w": draw(f, c, scale=f**-0.5),
        "out_b": draw(c, kind=torch.float32) if biases else None,
    }


def expected(inputs: dict[str, Any], centred: bool) -> Any:
    double = {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}
    return gdfn(**double, centred=centred)


def launched(kernel: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """Run the kernel in the emulator on packed weights; its output."""
    out = torch.full_like(inputs["x"], float("nan"))
    weights = kernel.pack(inputs["w"], inputs["affine"], inputs["dw"], inputs["out_w"])
    arrays = {name: inputs[name] for name in ("x", "v", "attention", "attention_b", "out_b")}
    emulate(kernel.launch(**arrays, weights=weights, out=out, **options))
    return out


@pytest.mark.parametrize(
    "n, h, w, c, f, dtype, biases, centred, overrides",
    [
        (2, 11, 19, 48, 128, HALF, True, True, {}),
        (1, 8, 16, 96, 256, HALF, True, True, {}),
        (1, 9, 17, 96, 64, BRAIN, True, False, {}),
        (1, 17, 7, 24, 64, HALF, False, True, {}),
        (2, 1, 33, 48, 32, BRAIN, False, False, {}),
        (1, 9, 17, 192, 64, HALF, True, True, {}),
        (1, 20, 20, 48, 96, HALF, True, True, {"WARPS": 8, "TALL": 16}),
    ],
)
def test_sm80(n, h, w, c, f, dtype, biases, centred, overrides) -> None:  # type: ignore[no-untyped-def]
    inputs = case(n, h, w, c, f, dtype, biases)
    out = launched(sm80, inputs, hidden=f, centred=centred, **overrides)
    assert error(out, expected(inputs, centred)) < BOUND[dtype]


@pytest.mark.parametrize(
    "n, h, w, c, f, dtype, biases, centred, overrides",
    [
        (1, 25, 49, 96, 64, HALF, True, True, {}),  # has tiles that touch no edge
        (1, 8, 16, 96, 256, HALF, False, True, {}),
        (2, 9, 17, 96, 64, BRAIN, True, False, {}),
        (1, 19, 33, 96, 128, HALF, True, True, {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
        (2, 11, 19, 48, 128, HALF, True, True, {}),
        (1, 1, 33, 48, 64, BRAIN, False, True, {}),
        (1, 17, 7, 48, 64, HALF, True, False, {}),
        (1, 9, 17, 192, 128, HALF, True, True, {}),
    ],
)
def test_sm90(n, h, w, c, f, dtype, biases, centred, overrides) -> None:  # type: ignore[no-untyped-def]
    inputs = case(n, h, w, c, f, dtype, biases)
    out = launched(sm90, inputs, centred=centred, **overrides)
    assert error(out, expected(inputs, centred)) < BOUND[dtype]


def test_sm90_fits_where_its_products_are() -> None:
    for channels, hidden in ((48, 128), (96, 256), (192, 512)):
        assert sm90.fits(channels, hidden, 90)
        assert not sm90.fits(channels, hidden, 100)
        assert not sm90.fits(channels, hidden, 89)
    assert not sm90.fits(384, 1024, 90)
    assert not sm90.fits(96, 32, 90)


@needs_nvrtc
@pytest.mark.parametrize("c, f", [(48, 128), (96, 256), (192, 512)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_sm90_compiles(c, f, dtype) -> None:  # type: ignore[no-untyped-def]
    inputs = case(1, 8, 16, c, f, dtype)
    weights = sm90.pack(inputs["w"], inputs["affine"], inputs["dw"], inputs["out_w"])
    arrays = [inputs[name] for name in ("x", "v", "attention", "attention_b")]
    one = sm90.launch(*arrays, weights, inputs["out_b"], inputs["x"])
    assert one.kernel.compile(one.constants, 90)
