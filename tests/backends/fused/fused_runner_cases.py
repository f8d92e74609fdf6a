"""The backend `fused` in Triton's interpreter, with a stand-in for the networks; run by test_runner.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from restort.backends.fused.instances import Instances
from restort.backends.fused.runner import FusedRunner
from restort.errors import OutOfMemory, RestortError
from restort.inference.model import Model
from restort.kernels.finite_check import triton as finite_check
from restort.kernels.finite_check.reference import non_finite
from restort.models.block_names import block_channels
from restort.weights.checkpoint import Weights, load_weights
from tests.fakes import fake_fused
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restort.backends.fused.networks.planner_of", lambda spec: fake_fused)
    fake_fused.plans.clear()
    fake_fused.room.clear()


@pytest.fixture(params=["elan", "restormer"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Weights:
    spec = replace(ELAN[2], channels=30) if request.param == "elan" else RESTORMER
    return load_weights(write_weights(tmp_path / "weights.safetensors", spec))


def runner_of(weights: Weights, precision: str = "fp16", **options: Any) -> FusedRunner:
    runner = FusedRunner(weights, precision, device="cpu", **options)
    runner.told = []  # type: ignore[attr-defined]
    runner.warn = runner.told.append  # type: ignore[attr-defined]
    return runner


def picture(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 3, h, w), np.float32)


def repeated(x: np.ndarray, scale: int) -> np.ndarray:
    return x.repeat(scale, axis=2).repeat(scale, axis=3)


def test_a_runner_like_the_others(weights: Weights) -> None:
    runner = runner_of(weights)
    assert (runner.name, runner.precision, runner.spec) == ("fused", "fp16", weights.spec)
    first = None
    for n, h, w in [(1, 32, 48), (2, 16, 32), (1, 32, 48)]:
        x = picture(n, h, w)
        y = runner(x)
        assert y.dtype == np.float32 and y.flags.c_contiguous
        np.testing.assert_allclose(y, repeated(x, weights.spec.scale), atol=1e-3)
        first = y if first is None else first
    np.testing.assert_allclose(first, repeated(picture(1, 32, 48), weights.spec.scale), atol=1e-3)
    assert fake_fused.plans == [(1, 32, 48), (2, 16, 32)]
    with pytest.raises(RestortError, match=r"takes arrays of shape \(N, 3, H, W\)"):
        runner(picture(1, 32, 32)[:, :1])
    with pytest.raises(RestortError, match="multiples of"):
        runner(picture(1, 20, 16))
    runner.close()
    runner.close()
    with pytest.raises(RestortError, match="closed"):
        runner(x)


def test_tensors_stay_on_the_device(weights: Weights) -> None:
    runner = runner_of(weights)
    x = torch.from_numpy(picture(1, 16, 32))
    y = runner.run_tensor(x)
    kept = y.clone()
    assert torch.allclose(y, torch.from_numpy(repeated(x.numpy(), weights.spec.scale)), atol=1e-3)
    runner.run_tensor(1 - x, check=False)
    assert torch.equal(y, kept)
    with pytest.raises(RestortError, match=r"takes arrays of shape \(N, 3, H, W\)"):
        runner.run_tensor(x[0])
    with pytest.raises(RestortError, match="takes a tensor on cpu"):
        runner.run_tensor(x.numpy())


def test_what_overflows_is_computed_again(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_fused, "GAIN", 1e6)
    runner = runner_of(weights)
    for _ in range(2):
        x = picture(1, 16, 32)
        np.testing.assert_allclose(runner(x), repeated(x, weights.spec.scale), atol=8e-3)
    assert len(runner.told) == 1 and "recomputed in bf16" in runner.told[0]  # type: ignore[attr-defined]
    x[:] = 0.01  # fits
    assert runner(x).max() < 0.02
    assert len(runner.told) == 1  # type: ignore[attr-defined]
    y = runner.run_tensor(torch.from_numpy(picture(1, 16, 32)))
    assert y.isfinite().all()


def test_the_last_resort_is_the_reference(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    from restort.models.torch_network import build

    monkeypatch.setattr(fake_fused, "GAIN", 3e38)
    x = picture(1, 16, 32)
    runner = runner_of(weights)
    y = runner(2 * x)
    with torch.no_grad():
        scale = weights.spec.value_range
        want = build(weights.spec, weights.state)(torch.from_numpy(2 * x) * scale) / scale
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-5, atol=1e-5)
    assert len(runner.told) == 1  # type: ignore[attr-defined]
    plain = runner_of(weights, "fp32")
    np.testing.assert_array_equal(plain(2 * x), y)
    assert list(plain.blocks(x)) == list(block_channels(weights.spec))


def test_nan_that_was_there_before_is_nobodys_fault(weights: Weights) -> None:
    runner = runner_of(weights)
    x = picture(1, 16, 32)
    x[0, 0, 3, 3] = np.nan
    assert np.isnan(runner(x)).any()
    assert runner.told == []  # type: ignore[attr-defined]


def test_threads(weights: Weights) -> None:
    runner = runner_of(weights, shapes=2)
    inputs = [picture(1, 16 * (1 + i % 4), 32, seed=i) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(runner, inputs))
    for x, y in zip(inputs, results, strict=True):
        np.testing.assert_allclose(y, repeated(x, weights.spec.scale), atol=1e-3)


def test_few_shapes_are_kept(weights: Weights) -> None:
    runner = runner_of(weights, shapes=3)
    for width in (16, 32, 48, 16, 64, 80):
        runner(picture(1, 16, width))
    network: Any = runner._networks["fp16"]
    assert [shape[2] for shape in network.instances.shapes] == [16, 64, 80]
    small = runner_of(weights, limit=1)
    for width in (16, 32):
        small(picture(1, 16, width))
    network = small._networks["fp16"]
    assert network.instances.shapes == ((1, 16, 32),)


def test_one_thread_makes_what_several_want() -> None:
    made = []

    def make(shape: Any) -> Any:
        made.append(shape)
        return type("Made", (), {"bytes": 1})()

    kept = Instances(make, 4, 100)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(kept.get, [(1, 8, 8)] * 50))
    assert made == [(1, 8, 8)] and len(set(map(id, found))) == 1


def test_memory_is_given_back_then_reported(weights: Weights) -> None:
    runner = runner_of(weights)
    runner(picture(1, 16, 16))
    fake_fused.room.append(1024)
    with pytest.raises(OutOfMemory, match=r"for an array of shape \[1, 3, 64, 64\]"):
        runner(picture(1, 64, 64))
    network: Any = runner._networks["fp16"]
    assert network.instances.shapes == ()  # all was given up before that
    np.testing.assert_allclose(
        runner(picture(1, 32, 32)), repeated(picture(1, 32, 32), weights.spec.scale), atol=1e-3
    )


def test_a_model_halves_its_tiles(weights: Weights) -> None:
    fake_fused.room.append(64 * 64)
    told: list[str] = []
    runner = runner_of(weights)
    runner.warn = told.append
    with Model(weights, runner, name="fake", tile=128) as model:
        x = picture(1, 120, 250)
        y = model.run(x)
    np.testing.assert_allclose(y, repeated(x, weights.spec.scale), atol=1e-3)
    assert len(told) == 1 and "tiles of 64x64" in told[0]


def test_blocks_and_clock(weights: Weights) -> None:
    runner = runner_of(weights)
    found = runner.blocks(picture(1, 16, 32))
    for i, (name, channels) in enumerate(block_channels(weights.spec).items()):
        assert found[name].shape == (1, channels, 16, 32) and (found[name] == i).all()
    free, per_pixel = runner.tile_memory()
    assert free > 0 and per_pixel == 3 * 2 + 4 * 3 * (1 + weights.spec.scale**2)


def test_a_missing_compiler_is_told(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(fake_fused, "plan", plan)
    with pytest.raises(RestortError, match="install gcc or set CC"):
        runner_of(weights)(picture(1, 16, 16))


def test_the_finite_check() -> None:
    for count in (1, 1024, 70001):
        x, flags = torch.randn(count), torch.full((finite_check.programs(count),), 7, dtype=torch.int32)
        finite_check.launch(x, flags)()
        assert not flags.any()
        for bad in (float("nan"), float("inf"), -float("inf")):
            for place in (0, count // 2, count - 1):
                y = x.clone()
                y[place] = bad
                finite_check.launch(y, flags)()
                assert int(flags.sum()) == 1 and non_finite(y)
        x[0] = 3.4e38
        finite_check.launch(x, flags)()
        assert not flags.any() and not non_finite(x)


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("fp16", 1e-3)])
def test_exact_strips(precision: str, near: float, tmp_path: Path) -> None:
    from restort.models.torch_network import build

    weights = load_weights(write_weights(tmp_path / "weights.safetensors", RESTORMER))
    runner = runner_of(weights, precision)
    x = picture(1, 72, 104)
    seen: list[int] = []
    bands = list(
        runner.exact(x, memory_bytes=0, folder=tmp_path, progress=lambda done, total: seen.append(total))
    )
    y = np.concatenate([band for _, band in bands], axis=2)
    with torch.no_grad():
        want = build(weights.spec, weights.state)(torch.from_numpy(x)).numpy()
    assert y.dtype == np.float32 and np.linalg.norm(y - want) < near * np.linalg.norm(want)
    assert len(seen) == seen[0]
    with Model(weights, runner, name="fake", tile="exact") as model:
        np.testing.assert_allclose(model.run(x[:, :, :70, :99]).shape, (1, 3, 70, 99))


def test_missing_compiler_is_told_once(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    from restort.kernels import nvrtc

    said: list[str] = []
    runner = runner_of(weights)
    runner.warn = said.append
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    runner._warn_without_nvrtc()
    assert not said  # nothing is missing on a CPU
    for there in (runner_of(weights), runner_of(weights, "fp32")):
        there.warn = said.append
        monkeypatch.setattr(there, "_device", torch.device("cuda", 0))
        for _ in range(2):
            there._warn_without_nvrtc()
    assert said == [
        f"NVRTC cannot be loaded, so the fastest kernels are not used; install it with: {nvrtc.REMEDY}"
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_pictures_are_converted_on_the_device_to_the_same_bits(
    weights: Weights, dtype: type, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of(weights, precision)
    random = np.random.default_rng(3)
    pixels = random.integers(0, np.iinfo(dtype).max + 1, (19, 37, 3)).astype(dtype)
    model = Model(
        weights, runner, name="x", entry=None, asked=("fused", precision), tile="auto", overlap=None
    )
    made = model(pixels)
    monkeypatch.setattr(Model, "_fits_device", lambda self, picture, runner: False)
    expected = model(pixels)
    assert made.dtype == dtype and made.flags.c_contiguous
    np.testing.assert_array_equal(made, expected)


def test_a_result_that_is_not_finite_is_no_picture(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(weights, "fp32")
    plain = runner._network("fp32")
    monkeypatch.setattr(plain, "_forward", lambda x: x.new_full(x.shape, float("nan")))
    with pytest.raises(RestortError, match="NaN or infinity; use"):
        runner.restore_pixels(np.zeros((8, 8, 3), np.uint8))


def test_a_picture_that_the_device_cannot_hold_runs_in_tiles(weights: Weights) -> None:
    runner = runner_of(weights)
    runner.tile_memory()  # which plans a larger shape
    fake_fused.room.append(96 * 96)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 130, 3), np.uint8)
    model = Model(weights, runner, name="x", entry=None, asked=("fused", "fp16"), tile="auto", overlap=None)
    made = model(pixels)
    assert made.shape[:2] == (150 * weights.spec.scale, 130 * weights.spec.scale)
    assert any("tiles of" in line for line in runner.told)  # type: ignore[attr-defined]
