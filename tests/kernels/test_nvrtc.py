"""restort.kernels.nvrtc: kernels compiled by NVRTC and kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="kernels need PyTorch")

from restort.kernels import nvrtc
from restort.kernels.nvrtc import CudaKernel

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="no NVRTC here")
CONSTANTS = {"WARPS": 1, "BLOCKS": 1, "SHARED": 0, "BF16": 0}


@pytest.fixture
def kernel(tmp_path: Path) -> CudaKernel:
    path = tmp_path / "copy.cu"
    path.write_text(
        'extern "C" __global__ void copy_one(float const* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }'
    )
    return CudaKernel("copy_one", path)


def test_what_is_compiled_is_kept(
    kernel: CudaKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    binary = kernel.compile(CONSTANTS, 80)
    (kept,) = (tmp_path / "cache" / "kernels").iterdir()
    assert kept.read_bytes() == binary and kept.suffix == ".cubin"
    kept.write_bytes(b"from the disk")
    assert kernel.compile(CONSTANTS, 80) == b"from the disk"


def test_a_cache_that_cannot_be_written_is_done_without(
    kernel: CudaKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    monkeypatch.setenv("RESTORT_CACHE", str(file))
    assert kernel.compile(CONSTANTS, 80).startswith(b"\x7fELF")
    assert file.read_text() == "no folder"
