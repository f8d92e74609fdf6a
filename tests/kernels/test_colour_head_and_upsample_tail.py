"""ELAN's first and last kernel: Triton's in its interpreter, that in CUDA C++ in the emulator."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.upsample_tail import sm80  # noqa: E402
from restort.kernels.upsample_tail.reference import upsample_tail  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.fakes import triton_interpreter  # noqa: E402
from tests.kernels.cases import BRAIN, HALF, error, padded  # noqa: E402
from tests.kernels.elan_in_triton import COMMON, interpreted  # noqa: E402

TRITON = """
from restort.kernels.colour_head import triton as colour_head_triton
from restort.kernels.colour_head.reference import colour_head
from restort.kernels.upsample_tail import triton as upsample_tail_triton
from restort.kernels.upsample_tail.reference import upsample_tail

for dtype, n, h, w, colors, channels, scale in [
    (torch.float32, 2, 16, 32, 3, 60, 4),
    (torch.float32, 1, 16, 16, 1, 180, 3),
    (torch.float16, 1, 32, 16, 3, 60, 2),
    (torch.bfloat16, 1, 16, 16, 3, 60, 3),
    (torch.float32, 1, 16, 16, 3, 60, 1),
]:
    image = torch.rand(n, colors, h, w)
    offset = torch.randn(colors)
    out = torch.full_like(padded(n, h, w, channels, dtype), 7)
    others = torch.full_like(out, 7), torch.full_like(out, 7)
    rows = 32 if colors == 3 else 16
    head = (torch.randn(rows, out.shape[3]) / 5).to(dtype), torch.randn(out.shape[3])
    colour_head_triton.launch(image, offset, head, out, others, 255.0, channels)()
    near(inner(out), colour_head(image, offset, head, 255.0), dtype, "head")
    assert not only_border(out).any()
    for other in others:
        assert not only_border(other).any() and (inner(other) == 7).all()
    x = padded(n, h, w, channels, dtype)
    made = max(16, 1 << (colors * scale**2 - 1).bit_length())
    tail = (torch.randn(9, out.shape[3], made) / 20).to(dtype), torch.randn(made)
    result = torch.zeros(n, colors, h * scale, w * scale)
    upsample_tail_triton.launch(x, tail, result, scale, 0.5, channels)()
    near(result, upsample_tail(x, tail, colors, scale, 0.5), torch.float32, "tail")
print("agree")
"""


@interpreted
def test_triton() -> None:
    assert triton_interpreter.run(COMMON + TRITON) == "agree"


@pytest.mark.parametrize(
    "n, h, w, colors, channels, scale, dtype, overrides",
    [
        (1, 16, 32, 3, 60, 4, HALF, {}),
        (2, 32, 16, 3, 60, 2, BRAIN, {"WARPS": 4, "STAGES": 2}),
        (1, 16, 16, 3, 180, 4, HALF, {}),
        (1, 16, 16, 1, 180, 2, HALF, {"STAGES": 2}),
    ],
)
def test_sm80(n, h, w, colors, channels, scale, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    x = padded(n, h, w, channels, dtype)
    made = max(16, 1 << (colors * scale**2 - 1).bit_length())
    weights = (torch.randn(9, x.shape[3], made) / 20).to(dtype), torch.randn(made)
    expected = upsample_tail(x.double(), (weights[0].double(), weights[1].double()), colors, scale, 0.5)
    blob = sm80.pack(weights, channels, colors, scale, 0.5)
    out = torch.full((n, colors, h * scale, w * scale), float("nan"))
    emulate(sm80.launch(x, blob, out, scale, channels, **overrides))
    assert error(out, expected) < 1e-6
