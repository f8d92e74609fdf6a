"""A CPU library that runs out of memory raises OutOfMemory, so that the tile is halved."""

from __future__ import annotations

import pytest

from restort.errors import OutOfMemory
from restort.runner import call_failed


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        RuntimeError("Failed to allocate memory for requested buffer of size 12345"),
        RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223: bad allocation"),
    ],
)
def test_out_of_memory_is_told_from_other_failures(error: Exception) -> None:
    found = call_failed("ONNX Runtime", (1, 3, 64, 64), error)
    assert isinstance(found, OutOfMemory)
    assert "smaller tiles (--tile)" in str(found)


def test_other_failures_are_not() -> None:
    assert not isinstance(
        call_failed("OpenVINO", (1, 3, 8, 8), RuntimeError("a shape is wrong")), MemoryError
    )
