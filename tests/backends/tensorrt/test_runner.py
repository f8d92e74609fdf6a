"""The backend tensorrt from weights to arrays, on a fake library and GPU: engines found, built, and built again."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from restort.backends.tensorrt import mixed_precision, provider
from restort.backends.tensorrt.cache import EngineCache
from restort.backends.tensorrt.options import Built, Profile
from restort.backends.tensorrt.provider import profile_for
from restort.backends.tensorrt.runner import is_finite
from restort.errors import OutOfMemory, RestortError
from restort.tiling.tiles import run_tiled, tile_layout
from restort.utils.gpu import Gpu
from restort.weights.checkpoint import Weights
from tests.fakes.fake_gpu import World, make_runner, picture
from tests.fakes.fake_tensorrt import enlarged


def test_one_engine_serves_many_sizes_and_processes(world: World, weights: Weights) -> None:
    first, said = make_runner(weights)
    assert not world.builds  # nothing is built before a size is known
    for h, w in ((32, 48), (16, 16), (1280, 64)):
        np.testing.assert_array_equal(first(picture(h, w)), enlarged(picture(h, w)))
    assert [options.profile for options in world.builds] == [profile_for(weights.spec, (1, 32, 48))]
    assert len(said) == 2 and "none is cached yet" in said[0] and said[1].startswith("built in 2 s")
    assert first.device == "NVIDIA H100" and first.device_peak_bytes() > 0
    first.close()
    first.close()
    with pytest.raises(RestortError, match="closed"):
        first(picture())
    second, said = make_runner(weights)
    second(picture())
    assert len(world.builds) == 1 and not said
    second.close()


def test_types_that_the_library_does_not_give_are_noted(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = provider.build

    def silent(*arguments: Any) -> Built:
        built = build(*arguments)
        more = {"precision": "fp16", "unchecked": "it gives only names"}
        return replace(built, report=built.report | more)

    monkeypatch.setattr(provider, "build", silent)
    runner, said = make_runner(weights)
    runner(picture())
    assert said[2:] == ["could not verify that the engine computes in fp16: it gives only names"]
    runner.close()


def test_batches_go_one_by_one_unless_an_engine_takes_them(world: World, weights: Weights) -> None:
    first, _ = make_runner(weights)
    x = picture(n=3)
    np.testing.assert_array_equal(first(x), enlarged(x))
    assert first.timer(x)() == 4.5
    first.close()
    whole, _ = make_runner(weights, profile=Profile.fixed(3, 32, 48))
    np.testing.assert_array_equal(whole(x), enlarged(x))
    with pytest.raises(RestortError, match="the engine takes inputs of 3x32x48"):
        whole(picture())
    whole.close()
    later, said = make_runner(weights)
    later(x)
    later(picture())  # the special engine for the batch, the general one for the rest
    assert len(later._engines) == 2 and len(world.builds) == 2 and not said
    assert later.timer(x)() == 1.5
    later.close()


def test_an_engine_that_cannot_be_opened_is_built_again(world: World, weights: Weights) -> None:
    first, _ = make_runner(weights)
    first(picture())
    first.close()
    (stored,) = EngineCache().entries()
    damaged = b"not a plan"
    about = stored.about | {"bytes": len(damaged), "sha256": hashlib.sha256(damaged).hexdigest()}
    from restort.backends.tensorrt import sidecar

    sidecar.write(stored.path, Built(damaged, about))
    second, said = make_runner(weights)
    np.testing.assert_array_equal(second(picture()), enlarged(picture()))
    assert len(world.builds) == 2 and "rebuilding" in said[0] and "does not parse" in said[0]
    second.close()


def test_updates_of_library_and_driver_build_again(world: World, weights: Weights) -> None:
    first, _ = make_runner(weights)
    first(picture())
    first.close()
    world.flavour.version = "10.16.1"
    second, said = make_runner(weights)
    second(picture())
    assert "version of the library is 8.6.0, not 10.16.1" in said[0]
    second.close()
    world.gpu = Gpu("NVIDIA H100", (9, 0), (13, 1))
    third, said = make_runner(weights)
    third(picture())
    assert "driver is 13.0, not 13.1" in said[0]
    third.close()


def test_a_result_that_is_not_finite_is_computed_again(world: World, weights: Weights) -> None:
    world.behaves = {"fp16": "nan"}
    first, said = make_runner(weights)
    for seed in range(3):
        np.testing.assert_array_equal(first(picture(seed=seed)), enlarged(picture(seed=seed)))
    assert [options.precision for options in world.builds] == ["fp16", "fp32"]  # 8.6 has no bfloat16
    assert len([line for line in said if "produced NaN/Inf" in line]) == 1
    assert any("recomputed in fp32" in line for line in said)
    x = picture()
    x[0, 0, 0, 0] = np.inf
    assert not np.isfinite(first(x)).all() and len(world.builds) == 2
    first.close()
    world.flavour.precisions = ("fp32", "tf32", "fp16", "bf16", "mixed")
    third, _ = make_runner(weights)  # a graph without bfloat16 cannot be built: then float32 it is
    np.testing.assert_array_equal(third(picture()), enlarged(picture()))
    third.close()
    world.flavour.capabilities.newer_operators = True
    second, _ = make_runner(weights)
    second(picture())
    assert world.builds[-1].precision == "bf16"
    second.close()


def test_streams_check_every_result(world: World, weights: Weights) -> None:
    world.behaves = {"fp16": "nan"}
    first, said = make_runner(weights)
    pictures = [picture(32, 48, seed=i) for i in range(3)] + [picture(16, 16, 2, 9), picture(16, 32, seed=4)]
    for x, y in zip(pictures, first.stream(iter(pictures)), strict=True):
        np.testing.assert_array_equal(y, enlarged(x))
    assert len([line for line in said if "produced NaN/Inf" in line]) == 1
    first.close()


def test_tiles_flow_through_the_stream(world: World, weights: Weights) -> None:
    first, _ = make_runner(weights)
    x = picture(300, 500)
    y = run_tiled(first, x, tile_layout(300, 500, weights.spec, 128))
    np.testing.assert_allclose(y, enlarged(x), atol=1e-6)
    room, each = first.tile_memory()
    assert 0 < room <= 1280 * 1280 * each
    first.close()


def test_memory_that_is_short_is_told_as_such(world: World, weights: Weights) -> None:
    first, _ = make_runner(weights)
    first(picture())
    world.cuda.memory = world.cuda.used
    with pytest.raises(OutOfMemory, match="smaller tiles"):
        first(picture(640, 640))
    np.testing.assert_array_equal(first(picture()), enlarged(picture()))
    first.close()


def test_timings_are_kept_between_builds(world: World, weights: Weights) -> None:
    for precision in ("fp16", "fp32"):
        first, _ = make_runner(weights, precision)
        first(picture())
        first.close()
    assert [options.timing_cache for options in world.builds] == [None, b"times of fp16"]


def test_mixed_needs_its_choice(world: World, weights: Weights) -> None:
    with pytest.raises(RestortError, match="restort build --precision mixed"):
        make_runner(weights, "mixed")
    mixed_precision.remember(weights, {"weights_sha256": weights.digest, "keep_fp32": ["tail", "head"]})
    first, _ = make_runner(weights, "mixed")
    first(picture())
    assert EngineCache().entries()[0].key["keep_fp32"] == ["head", "tail"]
    first.close()


def test_a_mixed_engine_is_checked_against_its_budget(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restort.profiling import engine_check
    from restort.profiling.pairs import Pair
    from restort.profiling.sensitivity import Budget

    mixed_precision.remember(weights, {"weights_sha256": weights.digest, "keep_fp32": ["head"]})

    class Search:
        """A reference that is off by a little."""

        def __init__(self, *about: Any) -> None:
            self.pairs = [Pair("a picture", picture(), None)]

        def cost_of(self, results: list[np.ndarray]) -> Any:
            from restort.profiling.sensitivity import Cost

            np.testing.assert_array_equal(results[0], enlarged(picture()))
            return Cost(1e-3, None)

    monkeypatch.setattr(engine_check, "Search", Search)
    monkeypatch.setattr(engine_check.importlib.util, "find_spec", lambda name: "here")
    whole = profile_for(weights.spec, (1, 16, 16))
    assert engine_check.of_engine(weights, "auto", whole, {}, Budget(2e-3)) == (
        True,
        "the engine was run and meets the budget: relative L2 1.0e-03",
    )
    fits, outcome = engine_check.of_engine(weights, "auto", whole, {}, Budget(5e-4))
    assert not fits and "misses the budget of 0.0005" in outcome
    fits, outcome = engine_check.of_engine(weights, "auto", Profile.fixed(1, 64, 64), {}, Budget())
    assert fits and "was not checked" in outcome
    monkeypatch.setattr(engine_check.importlib.util, "find_spec", lambda name: None)
    assert "takes PyTorch" in engine_check.of_engine(weights, "auto", whole, {}, Budget())[1]


def test_finite() -> None:
    y = np.zeros((1, 3, 8, 8), np.float32)
    assert is_finite(y) and is_finite(y + np.float32(3e38))
    for bad in (np.nan, np.inf, -np.inf):
        y[0, 1, 2, 3] = bad
        assert not is_finite(y)
    y[0, 0, 0, 0] = np.inf
    assert not is_finite(y)
