"""Every kind of kernel compiles for GPUs of five compute capabilities, without one, and fits into their shared memory.

`python -m restort.backends.fused.kernel_sweep --all` does it for every variant of every published network.
"""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted, not compiled", allow_module_level=True)

from restort.backends.fused import kernel_sweep as sweep
from restort.kernels.gpu_target import SHARED_KIB, gpu_target, planning_for


@pytest.mark.timeout(600)
def test_kernels_compile_for_every_gpu() -> None:
    work = sweep.sample(sweep.everything(sweep.SMALL.values(), sizes=sweep.SIZES[:1]))
    assert {capability for _, capability in work} == set(sweep.CAPABILITIES)
    processes = min(2, os.cpu_count() or 1)
    made = list(sweep.compile_all(work, processes))
    assert {one.capability for one in made} == set(sweep.CAPABILITIES)
    for one in made:
        assert one.error is None, one
        assert one.cubin_bytes > 1000 and one.shared_bytes <= SHARED_KIB[one.capability] << 10
        assert 8 <= one.registers <= 255 or not one.registers


def test_a_variant_is_compiled_once() -> None:
    passes = [sweep.plan_for(sweep.SMALL["elan-light-x4"], 90, size=size) for size in sweep.SIZES]
    found = sweep.variants(passes)
    assert len({launch.variant() for launch in found}) == len(found) <= 20
    assert "finite_check" in {launch.label for launch in found}


def test_too_much_shared_memory_is_an_error() -> None:
    fits = sweep.Compiled("kernel", 86, "label", shared_bytes=99 << 10)
    assert sweep.checked(fits).error is None
    more = sweep.Compiled("kernel", 86, "label", shared_bytes=100 << 10)
    assert "102400 bytes of shared memory, 101376 are there" in (sweep.checked(more).error or "")


def test_plans_for_a_gpu_elsewhere() -> None:
    import torch

    with planning_for(86, 84):
        assert gpu_target(torch.device("meta")) == (86, 84)
    assert gpu_target(torch.device("cpu")) == (90, 132)


def test_a_record_has_no_names_and_shows_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = sweep.Compiled("lfe_sm80", 90, "label", shared_bytes=1024, code="abc")

    def compile_all(work: Any, processes: int = 1) -> Any:
        return (code for _ in work)

    monkeypatch.setattr(sweep, "compile_all", compile_all)
    monkeypatch.setattr(sweep, "available", lambda: True)
    file = tmp_path / "record.json"
    options = ["--network", "elan-light-x4", "--capability", "90"]
    assert sweep.main([*options, "--record", str(file)]) == 0
    assert "abc" in file.read_text() and "lfe_sm80" not in file.read_text()
    assert sweep.main([*options, "--compare", str(file)]) == 0
    code = replace(code, kernel="renamed", code="abd")
    assert sweep.main([*options, "--compare", str(file)]) == 1
    assert "1024 | abc\n  now     head" in capsys.readouterr().out


def test_a_digest_is_of_the_code_alone() -> None:
    def cubin(*sections: tuple[str, bytes]) -> bytes:
        names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in sections)
        blobs, headers, place = [names], [], 64
        for content in [names, *(content for _, content in sections)]:
            headers.append((place, len(content)))
            place += len(content)
        blobs += [content for _, content in sections]
        starts = [0, *(names.index(name.encode() + b"\0") for name, _ in sections)]
        table = b"".join(
            struct.pack("<IIQQQQ", start, 1, 0, 0, *header) for start, header in zip(starts, headers)
        )
        front = bytearray(64)
        front[:4] = b"\x7fELF"
        struct.pack_into("<Q", front, 0x28, place)
        struct.pack_into("<HHH", front, 0x3A, 40, len(headers), 0)
        return bytes(front) + b"".join(blobs) + table

    one = sweep.code_digest(cubin((".text.old_name", b"code"), (".symtab", b"old")))
    assert one == sweep.code_digest(cubin((".symtab", b"new"), (".text.new_name", b"code")))
    assert one != sweep.code_digest(cubin((".text.old_name", b"cods"), (".symtab", b"old")))
