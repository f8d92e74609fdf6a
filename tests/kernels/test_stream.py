"""The streamed CUDA kernels, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import stream_ffn, stream_gram  # noqa: E402
from tests.emulator import emulate  # noqa: E402

BOUND = {torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


def ffn_case(
    n: int, h: int, w: int, c: int, f: int, dtype: Any, apply: bool, seed: int = 0
) -> dict[str, Any]:
    """Inputs of stream_ffn with about unit activations, in the types the kernel takes."""
    torch.manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, kind: Any = dtype) -> Any:
        return (torch.randn(*shape) * scale).to(kind)

    return {
        "x": draw(n, h, w, c),
        "v": draw(n, h, w, c) if apply else None,
        "fold": draw(n, c, c, scale=c**-0.5) if apply else None,
        "fold_b": draw(c, kind=torch.float32) if apply else None,
        "w": draw(2 * f, c, scale=c**-0.5),
        "affine": draw(2, 2 * f, kind=torch.float32),
        "dw": draw(10, 2 * f, scale=0.33),
        "out_w": draw(f, c, scale=f**-0.5),
        "out_b": draw(c, kind=torch.float32),
    }


def error(a: Any, b: Any) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def wide(case: dict[str, Any]) -> dict[str, Any]:
    return {name: None if tensor is None else tensor.double() for name, tensor in case.items()}


@pytest.mark.parametrize(
    "n, h, w, c, f, dtype, apply, centred, variant",
    [
        (2, 11, 19, 48, 128, torch.float16, True, True, {}),
        (1, 8, 16, 96, 256, torch.float16, True, True, {}),
        (1, 9, 17, 96, 64, torch.bfloat16, True, False, {}),
        (1, 17, 7, 24, 64, torch.float16, False, True, {"GELU": 0}),
        (2, 1, 33, 48, 32, torch.bfloat16, False, False, {"PACKED": 0, "GELU": 1}),
        (1, 9, 17, 192, 64, torch.float16, True, True, {}),
        (1, 20, 20, 48, 96, torch.float16, True, True, {"WARPS": 8, "TALL": 16, "PACKED": 0}),
    ],
)
def test_stream_ffn(n, h, w, c, f, dtype, apply, centred, variant) -> None:  # type: ignore[no-untyped-def]
    case = ffn_case(n, h, w, c, f, dtype, apply)
    expected = stream_ffn.stream_ffn(**wide(case), centred=centred)
    out = torch.full_like(case["x"], float("nan"))
    dw = case.pop("dw")
    emulate(stream_ffn.launch(**case, dw16=dw, out=out, centred=centred, **variant))
    assert error(out, expected) < BOUND[dtype]


@pytest.mark.parametrize(
    "n, h, w, c, heads, splits, dtype, centred, variant",
    [
        (2, 11, 19, 48, 1, 3, torch.float16, True, {}),
        (1, 11, 19, 48, 1, 3, torch.float16, True, {"WGMMA": 1}),
        (1, 20, 18, 96, 1, 2, torch.float16, True, {}),
        (1, 20, 18, 96, 1, 2, torch.float16, True, {"WARPS": 8, "TALL": 16, "WGMMA": 1}),
        (1, 9, 17, 96, 2, 1, torch.bfloat16, False, {}),
        (1, 25, 16, 48, 1, 1, torch.bfloat16, True, {"PACKED": 0, "CHUNK": 16}),
        (1, 9, 15, 192, 4, 1, torch.float16, True, {}),
        (1, 9, 18, 96, 2, 2, torch.float16, True, {"CHUNK": 32, "PACKED": 0, "PART_K": 48}),
        (1, 35, 20, 96, 1, 1, torch.float16, True, {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
        (1, 20, 18, 96, 2, 2, torch.float16, True, {"FUSED": 0, "CHUNK": 48}),
        (1, 9, 33, 48, 1, 2, torch.float16, False, {"CHUNK": 16, "PART_K": 24, "BLOCKS": 3}),
        (1, 9, 17, 192, 4, 1, torch.bfloat16, True, {"WARPS": 8, "PART_K": 24}),
        (1, 9, 17, 192, 2, 1, torch.float16, True, {}),
        (1, 17, 9, 192, 4, 2, torch.float16, False, {"WGMMA": 1}),
        (1, 35, 20, 96, 1, 1, torch.float16, True, {"WARPS": 12, "TALL": 16, "PART_K": 16, "BLOCKS": 1}),
        (1, 35, 20, 48, 1, 2, torch.float16, True, {"WARPS": 12, "TALL": 16, "PART_K": 16, "BLOCKS": 1}),
    ],
)
def test_stream_gram(n, h, w, c, heads, splits, dtype, centred, variant) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    x = torch.randn(n, h, w, c).to(dtype)
    weight = (torch.randn(3 * c, c) * c**-0.5).to(dtype)
    affine, dw = torch.randn(2, 3 * c), (torch.randn(10, 3 * c) * 0.33).to(dtype)
    v_expected, expected = stream_gram.stream_gram(
        x.double(), weight.double(), affine.double(), dw.double(), heads, centred=centred
    )
    v, ch = torch.full_like(x, float("nan")), c // heads
    sums = torch.full((splits, n, heads, ch * (ch + 2)), float("nan"))
    emulate(stream_gram.launch(x, weight, affine, dw, v, sums, centred=centred, **variant))
    assert error(v, v_expected) < BOUND[dtype]
    total = sums.double().sum(0)
    for part in (slice(0, ch * ch), slice(ch * ch, None)):
        assert error(total[..., part], expected[..., part]) < BOUND[dtype]
