"""The depthwise kernels by tiles in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import aot, cuda, depthwise  # noqa: E402
from restort.kernels.depthwise_gram import kernel as depthwise_gram  # noqa: E402
from restort.kernels.depthwise_gram import tile as gram  # noqa: E402
from restort.kernels.depthwise_gram.reference import depthwise3x3  # noqa: E402
from restort.kernels.gate_project import tile as gate  # noqa: E402
from restort.kernels.machine import SHARED_KIB  # noqa: E402
from tests.emulator import emulate  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
BOUND = {HALF: 1.5e-3, BRAIN: 1.2e-2}
ODD = [(1, 1, 1), (2, 3, 18), (1, 9, 20), (2, 20, 7)]  # images, height, width


def error(a: Any, b: Any) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def inputs(n: int, h: int, w: int, channels: int, dtype: Any) -> tuple[Any, Any]:
    """An expanded array and its taps."""
    torch.manual_seed(0)
    return torch.randn(n, h, w, channels).to(dtype), (torch.randn(10, channels) / 3).to(dtype)


def exact(x: Any, dw: Any) -> Any:
    """The depthwise 3x3 in float64."""
    x, dw = x.double().permute(0, 3, 1, 2), dw.double()
    weight = dw[:9].T.reshape(-1, 1, 3, 3)
    y = torch.nn.functional.conv2d(x, weight, dw[9], padding=1, groups=len(weight))
    return y.permute(0, 2, 3, 1)


def test_exact_is_the_reference() -> None:
    x, dw = inputs(1, 5, 4, 16, torch.float32)
    assert error(depthwise3x3(x, dw), exact(x, dw)) < 1e-6


@pytest.mark.parametrize("n, h, w", ODD)
@pytest.mark.parametrize(
    "hidden, dtype, variant",
    [
        (64, HALF, {}),
        (96, BRAIN, {}),  # by 32 channels
        (128, HALF, {"TALL": 8, "REVERSE": 0}),
        (64, BRAIN, {"TALL": 6, "WARPS": 8}),
    ],
)
def test_gate(n, h, w, hidden, dtype, variant) -> None:  # type: ignore[no-untyped-def]
    expanded, dw = inputs(n, h, w, 2 * hidden, dtype)
    gates, values = exact(expanded, dw).chunk(2, -1)
    y = torch.full((n, h, w, hidden), float("nan"), dtype=dtype)
    emulate(gate.launch(expanded, dw, y, **variant))
    assert error(y, torch.nn.functional.gelu(gates) * values) < BOUND[dtype]


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_gate_compiles_without_spills(dtype, capability) -> None:  # type: ignore[no-untyped-def]
    for size in ((90, 160), (32, 32)):
        for hidden in (1024, 96):
            x, y = (torch.empty(1, *size, by * hidden, dtype=dtype, device="meta") for by in (2, 1))
            one = gate.launch(x, x, y, capability=capability)
            registers, spilled = aot.resources(gate.KERNEL.compile(one.constants, capability))
            assert registers and not spilled
            assert one.constants["SHARED"] <= SHARED_KIB[capability] * 1024


@pytest.mark.parametrize("n, h, w", ODD)
@pytest.mark.parametrize(
    "channels, heads, dtype, variant",
    [
        (48, 1, HALF, {}),
        (96, 2, BRAIN, {"BLOCKS": 1, "REVERSE": 0}),
        (96, 2, HALF, {"TALL": 8, "BLOCKS": 1}),
        (64, 2, HALF, {"TALL": 8, "WARPS": 8}),
        (16, 1, HALF, {"TALL": 4, "WARPS": 1, "BLOCKS": 2}),
    ],
)
def test_gram(n, h, w, channels, heads, dtype, variant) -> None:  # type: ignore[no-untyped-def]
    """On a GPU of one or two multiprocessors, so that blocks have several tiles."""
    qkv, dw = inputs(n, h, w, 3 * channels, dtype)
    q, k, values = exact(qkv, dw).view(n, h * w, 3, heads, -1).unbind(2)
    variant = {"processors": 1 + channels // 96, **variant}
    count = gram.splits(n, h, w, channels, heads, **variant)
    v = torch.full((n, h, w, channels), float("nan"), dtype=dtype)
    sums = torch.full(depthwise_gram.sums_shape(n, heads, channels, count), float("nan"))
    emulate(gram.launch(qkv, dw, v, sums, **variant))
    assert error(v, values.reshape(v.shape)) < BOUND[dtype]
    products = torch.einsum("nphi,nphj->nhij", q, k).flatten(2)
    found, size = sums.double().sum(0), products.shape[2]
    assert error(found[..., :size], products) < BOUND[dtype]
    assert error(found[..., size:], torch.cat([(q * q).sum(1), (k * k).sum(1)], -1)) < BOUND[dtype]


@pytest.mark.skipif(not cuda.available(), reason="no NVRTC here")
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_gram_compiles_without_spills(dtype, capability) -> None:  # type: ignore[no-untyped-def]
    for h, w in ((90, 160), (32, 32)):
        qkv, v = (torch.empty(1, h, w, by * 384, dtype=dtype, device="meta") for by in (3, 1))
        shape = depthwise_gram.sums_shape(1, 8, 384, gram.splits(1, h, w, 384, 8, capability))
        one = gram.launch(qkv, qkv, v, torch.empty(shape, device="meta"), capability=capability)
        registers, spilled = aot.resources(gram.KERNEL.compile(one.constants, capability))
        assert registers and not spilled
        assert one.constants["SHARED"] <= SHARED_KIB[capability] * 1024


def test_gram_shares_out_every_tile() -> None:
    """No block without a tile, and no more rounds than the blocks that run at once need."""
    for n, h, w in ((1, 90, 160), (1, 46, 69), (1, 32, 32), (2, 1, 1), (8, 32, 32)):
        cut = gram.tiles(n, h, w, 384, 8)
        count, found = depthwise.count(h, w, cut["TALL"]), gram.splits(n, h, w, 384, 8)
        assert 1 <= found <= count
        assert -(-count // found) == -(-count // max(1, cut["BLOCKS"] * 132 // (8 * n)))


def test_cuts_that_have_run_on_a_gpu() -> None:
    """docs/design/kernels.md has their times on an H100; a change here wants another measurement."""
    gates = {(1, 90, 160): (6, 4, 5), (1, 46, 69): (6, 4, 5), (1, 32, 32): (8, 4, 4), (8, 32, 32): (6, 4, 5)}
    grams = {(1, 90, 160): (8, 6, 2), (1, 46, 69): (8, 6, 2), (1, 32, 32): (4, 3, 4), (8, 32, 32): (8, 6, 2)}
    for n, h, w in gates:
        ways = gate.tiles(n * h * w, 1024), gram.tiles(n, h, w, 384, 8)
        found = [tuple(cut[key] for key in ("TALL", "WARPS", "BLOCKS")) for cut in ways]
        assert found == [gates[n, h, w], grams[n, h, w]]
    cut = gate.tiles(1 << 20, 96)
    assert (cut["CHANNELS"], cut["TALL"], cut["WARPS"], cut["BLOCKS"]) == (32, 8, 2, 8)


def test_gram_refuses_more_sums_than_tiles() -> None:
    qkv, v = (torch.empty(1, 5, 16, by * 48, dtype=HALF, device="meta") for by in (3, 1))
    two, three = (torch.empty(depthwise_gram.sums_shape(1, 1, 48, count), device="meta") for count in (2, 3))
    assert gram.launch(qkv, qkv, v, two).grid == (2, 1)
    with pytest.raises(ValueError, match="3 partial sums of 2 tiles"):
        gram.launch(qkv, qkv, v, three)
