"""The gating in CUDA C++, thread by thread on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from restort.kernels.gelu_gate_project import sm80  # noqa: E402
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


@pytest.mark.parametrize("n, h, w", [(1, 1, 1), (2, 3, 18), (1, 9, 20), (2, 20, 7)])
@pytest.mark.parametrize(
    "hidden, dtype, overrides",
    [
        (64, HALF, {}),
        (96, BRAIN, {}),  # by 32 channels
        (128, HALF, {"TALL": 8}),
        (64, BRAIN, {"TALL": 6, "WARPS": 8}),
    ],
)
def test_sm80(n, h, w, hidden, dtype, overrides) -> None:  # type: ignore[no-untyped-def]
    expanded, dw = depthwise_inputs(n, h, w, 2 * hidden, dtype)
    gates, values = depthwise_exact(expanded, dw).chunk(2, -1)
    y = torch.full((n, h, w, hidden), float("nan"), dtype=dtype)
    emulate(sm80.launch(expanded, dw, y, **overrides))
    assert error(y, torch.nn.functional.gelu(gates) * values) < BOUND[dtype]


@needs_nvrtc
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_sm80_compiles_without_spills(dtype, capability) -> None:  # type: ignore[no-untyped-def]
    for size in ((90, 160), (32, 32)):
        for hidden in (1024, 96):
            x, y = (torch.empty(1, *size, by * hidden, dtype=dtype, device="meta") for by in (2, 1))
            one = sm80.launch(x, x, y, capability=capability)
            registers, spilled = registers_and_spills(one, capability)
            assert registers and not spilled
            assert one.constants["SHARED"] <= shared_memory_limit(capability)


def test_tilings_that_have_run_on_a_gpu() -> None:
    """docs/design/kernels.md has their times on an H100; a change here wants another measurement."""
    tilings = {
        (1, 90, 160): (6, 4, 5),
        (1, 46, 69): (6, 4, 5),
        (1, 32, 32): (8, 4, 4),
        (8, 32, 32): (6, 4, 5),
    }
    for (n, h, w), expected in tilings.items():
        found = sm80.tiling(n * h * w, 1024)
        assert tuple(found[key] for key in ("TALL", "WARPS", "BLOCKS")) == expected
    found = sm80.tiling(1 << 20, 96)
    assert (found["CHANNELS"], found["TALL"], found["WARPS"], found["BLOCKS"]) == (32, 8, 2, 8)
