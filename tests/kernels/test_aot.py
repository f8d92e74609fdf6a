"""Every kind of kernel compiles for GPUs of five compute capabilities, without one, and fits into their shared memory.

`python -m restort.kernels.aot --all` does the same for every variant of every published network.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted, not compiled", allow_module_level=True)

from restort.kernels import aot
from restort.kernels.machine import SHARED_KIB, machine, planning_for


@pytest.mark.timeout(600)
def test_kernels_compile_for_every_gpu() -> None:
    work = aot.sample(aot.everything(aot.SMALL.values(), sizes=aot.SIZES[:1]))
    assert {capability for _, capability in work} == set(aot.CAPABILITIES)
    processes = min(2, os.cpu_count() or 1)
    made = list(aot.compile_all(work, processes))
    assert {one.capability for one in made} == set(aot.CAPABILITIES)
    for one in made:
        assert one.error is None, one
        assert one.cubin_bytes > 1000 and one.shared_bytes <= SHARED_KIB[one.capability] << 10
        assert 8 <= one.registers <= 255 or not one.registers


def test_a_variant_is_compiled_once() -> None:
    passes = [aot.plan_for(aot.SMALL["elan-light-x4"], 90, size=size) for size in aot.SIZES]
    found = aot.variants(passes)
    assert len({launch.variant() for launch in found}) == len(found) <= 20
    assert "sentinel" in {launch.label for launch in found}


def test_too_much_shared_memory_is_an_error() -> None:
    fits = aot.Compiled("kernel", 86, "label", shared_bytes=99 << 10)
    assert aot.checked(fits).error is None
    more = aot.Compiled("kernel", 86, "label", shared_bytes=100 << 10)
    assert "102400 bytes of shared memory, 101376 are there" in (aot.checked(more).error or "")


def test_plans_for_a_gpu_elsewhere() -> None:
    import torch

    with planning_for(86, 84):
        assert machine(torch.device("meta")) == (86, 84)
    assert machine(torch.device("cpu")) == (90, 132)
