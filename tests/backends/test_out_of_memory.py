"""A CPU library that runs out of memory raises OutOfMemory, so that the tile is halved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.errors import OutOfMemory
from restort.imaging.picture import Picture
from restort.inference import model as inference
from restort.runner import call_failed
from restort.tiling.halving import Halving
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import ELAN, RESTORMER, FakeRunner, write_weights


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


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    return load_weights(write_weights(tmp_path / "x2.safetensors", ELAN[2]))


@pytest.fixture
def restormer(weights: Any, tmp_path: Path) -> Any:
    return load_weights(write_weights(tmp_path / "denoise.safetensors", RESTORMER))


def test_openvino_that_ran_out_is_not_used_again(restormer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns an empty array instead of an error, and crashes in the next call: ONNX Runtime goes on."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from restort.backends.onnxruntime_cpu import OnnxRuntimeRunner
    from restort.backends.openvino_cpu import OpenVinoRunner

    class Short:
        def infer(self, inputs: Any, share_inputs: bool) -> None:
            pass

        def get_output_tensor(self, index: int) -> Any:
            return self

        data = np.empty((0, 3, 0, 0), np.float32)

    told: list[str] = []
    runner = OpenVinoRunner(restormer)
    runner.warn = told.append
    x = np.random.default_rng(0).random((1, 3, 160, 160), np.float32)
    monkeypatch.setattr(runner, "_request", lambda shape: Short())
    with pytest.raises(OutOfMemory):
        runner(x)
    y = Halving(runner, runner.spec)(x)
    assert y.shape == x.shape
    assert told == ["OpenVINO ran out of memory; continuing with ONNX Runtime in fp32"]
    small = x[:, :, :64, :64]
    np.testing.assert_array_equal(runner(small), OnnxRuntimeRunner(restormer)(small))


def test_onnx_runtime_runs_after_shrinking(restormer: Any) -> None:
    from restort.backends.onnxruntime_cpu import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner(restormer)
    x = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    before = runner(x)
    runner.shrink()
    np.testing.assert_array_equal(runner(x), before)


def test_memory_that_runs_out_beside_the_network(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays that join the tiles are smaller for smaller tiles; a size that the user asks for is kept."""
    real, edges, told = inference.stream_tiled, [], []

    def short(network: Any, x: Any, layout: Any, progress: Any = None) -> Any:
        edges.append(max(layout.tile_shape))
        if edges[-1] > 100:
            raise MemoryError
        yield from real(network, x, layout, progress)

    monkeypatch.setattr(inference, "stream_tiled", short)
    runner = FakeRunner(weights.spec, "fp32")
    runner.warn = told.append
    picture = Picture(np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8))
    restored = inference.Model(weights, runner, name="x2").restore_picture(picture)
    np.testing.assert_array_equal(restored.pixels, picture.pixels.repeat(2, 0).repeat(2, 1))
    assert edges[-1] <= 100 and edges == sorted(edges, reverse=True) and len(told) == len(edges) - 1
    assert "beginning again with tiles of" in told[0]
    with pytest.raises(inference.RestortError, match="use smaller tiles"):
        inference.Model(weights, runner, name="x2", tile=256).restore_picture(picture)
