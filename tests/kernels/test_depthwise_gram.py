"""depthwise_gram in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels import depthwise  # noqa: E402
from restort.kernels.depthwise_gram import sm80  # noqa: E402
from restort.kernels.depthwise_gram import triton as depthwise_gram  # noqa: E402
from restort.kernels.depthwise_gram.reference import depthwise3x3  # noqa: E402
from restort.kernels.gpu_target import shared_memory_limit  # noqa: E402
from tests.emulator import emulate  # noqa: E402
from tests.kernels.cases import (  # noqa: E402
    BRAIN,
    HALF,
    depthwise_exact,
    depthwise_inputs,
    error,
    needs_nvrtc,
    registers_and_spills,
)

BOUND = {HALF: 1.5e-3, BRAIN: 1.2e-2}


def test_exact_is_the_reference() -> None:
    x, dw = depthwise_inputs(1, 5, 4, 16, torch.float32)
    assert error(depthwise3x3(x, dw), depthwise_exact(x, dw)) < 1e-6


@pytest.mark.parametrize("n, h, w", [(1, 1, 1), (2, 3, 18), (1, 9, 20), (2, 20, 7)])
@pytest.mark.parametrize(
    "channels, heads, dtype, overrides",
    [
        (48, 1, HALF, {}),
        (96, 2, BRAIN, {"BLOCKS": 1}),
        (96, 2, HALF, {"TALL": 8, "BLOCKS": 1}),
        (64, 2, HALF, {"TALL": 8, "WARPS": 8}),
        (16, 1, HALF, {"TALL": 4, "WARPS": 1, "BLOCKS": 2}),
    ],
)
def test_sm80(n, h, w, channels, heads, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    """On a GPU of one or two multinum_sms, so that blocks have several tiles."""
    qkv, dw = depthwise_inputs(n, h, w, 3 * channels, dtype)
    q, k, values = depthwise_exact(qkv, dw).view(n, h * w, 3, heads, -1).unbind(2)
    overrides = {"num_sms": 1 + channels // 96, **overrides}
    count = sm80.splits(n, h, w, channels, heads, **overrides)
    v = torch.full((n, h, w, channels), float("nan"), dtype=dtype)
    sums = torch.full(depthwise_gram.sums_shape(n, heads, channels, count), float("nan"))
    emulate(sm80.launch(qkv, dw, v, sums, **overrides))
    assert error(v, values.reshape(v.shape)) < BOUND[dtype]
    products = torch.einsum("nphi,nphj->nhij", q, k).flatten(2)
    found, size = sums.double().sum(0), products.shape[2]
    assert error(found[..., :size], products) < BOUND[dtype]
    assert error(found[..., size:], torch.cat([(q * q).sum(1), (k * k).sum(1)], -1)) < BOUND[dtype]


@needs_nvrtc
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_sm80_compiles_without_spills(dtype, capability) -> None:  # type: ignore[no-untyped-def]
    for h, w in ((90, 160), (32, 32)):
        qkv, v = (torch.empty(1, h, w, by * 384, dtype=dtype, device="meta") for by in (3, 1))
        shape = depthwise_gram.sums_shape(1, 8, 384, sm80.splits(1, h, w, 384, 8, capability))
        one = sm80.launch(qkv, qkv, v, torch.empty(shape, device="meta"), capability=capability)
        registers, spilled = registers_and_spills(one, capability)
        assert registers and not spilled
        assert one.constants["SHARED"] <= shared_memory_limit(capability)


def test_sm80_shares_out_every_tile() -> None:
    """No block without a tile, and no more rounds than the blocks that run at once need."""
    for n, h, w in ((1, 90, 160), (1, 46, 69), (1, 32, 32), (2, 1, 1), (8, 32, 32)):
        chosen = sm80.tiling(n, h, w, 384, 8)
        count, found = depthwise.count_tiles(h, w, chosen["TALL"]), sm80.splits(n, h, w, 384, 8)
        assert 1 <= found <= count
        assert -(-count // found) == -(-count // max(1, chosen["BLOCKS"] * 132 // (8 * n)))


def test_tilings_that_have_run_on_a_gpu() -> None:
    """docs/design/kernels.md has their times on an H100; a change here wants another measurement."""
    tilings = {
        (1, 90, 160): (8, 6, 2),
        (1, 46, 69): (8, 6, 2),
        (1, 32, 32): (4, 3, 4),
        (8, 32, 32): (8, 6, 2),
    }
    for (n, h, w), expected in tilings.items():
        found = sm80.tiling(n, h, w, 384, 8)
        assert tuple(found[key] for key in ("TALL", "WARPS", "BLOCKS")) == expected


def test_sm80_refuses_more_sums_than_tiles() -> None:
    qkv, v = (torch.empty(1, 5, 16, by * 48, dtype=HALF, device="meta") for by in (3, 1))
    two, three = (torch.empty(depthwise_gram.sums_shape(1, 1, 48, count), device="meta") for count in (2, 3))
    assert sm80.launch(qkv, qkv, v, two).grid == (2, 1)
    with pytest.raises(ValueError, match="3 partial sums of 2 tiles"):
        sm80.launch(qkv, qkv, v, three)
