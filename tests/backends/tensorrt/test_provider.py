"""Which engine a size gets, for this GPU and for others; on a fake library and GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from restort.backends.tensorrt.options import Profile
from restort.backends.tensorrt.provider import EngineProvider, profile_for, report_seldom
from restort.errors import RestortError, UsageError
from restort.utils.gpu import Gpu
from restort.weights.checkpoint import Weights, load_weights
from tests.fakes.fake_backend import RESTORMER, write_weights
from tests.fakes.fake_gpu import World, make_runner, picture
from tests.fakes.fake_tensorrt import enlarged


def test_sizes_beyond_the_usual_get_an_engine_that_lasts(weights: Weights) -> None:
    spec = weights.spec
    assert profile_for(spec, (1, 16, 16)) == Profile((1, 16, 16), (1, 384, 640), (1, 1280, 1280))
    assert profile_for(spec, (4, 1296, 64)).max == (1, 1536, 1280)


@pytest.mark.parametrize("is_typed", [False, True])
def test_a_restormer_has_an_engine_for_each_size_where_the_library_has_no_types(
    world: World, tmp_path: Path, is_typed: bool
) -> None:
    world.flavour.capabilities.strongly_typed = is_typed
    restormer = load_weights(write_weights(tmp_path / "restormer.safetensors", RESTORMER))
    provider = EngineProvider(restormer, "fp16", world.flavour)
    one = Profile.fixed(1, 32, 48)
    assert provider.profile_for((1, 32, 48)) == (
        profile_for(restormer.spec, (1, 32, 48)) if is_typed else one
    )
    assert provider.provide((1, 32, 48)).built and not provider.provide((1, 32, 48)).built
    assert provider.provide((1, 64, 64)).built is not is_typed


def test_building_ahead_needs_no_gpu(world: World, weights: Weights) -> None:
    world.gpu = None
    world.flavour.name, world.flavour.version = "rtx", "1.7.1"
    said: list[str] = []
    ahead = EngineProvider(weights, "fp16", world.flavour, targets=("8.6", "8.9"), notify=said.append)
    stored = ahead.obtain(profile_for(weights.spec, (1, 64, 64)))
    assert world.builds[-1].compute_capabilities == ("8.6", "8.9") and stored.key["gpu"] is None
    with pytest.raises(RestortError, match="no usable NVIDIA GPU"):
        make_runner(weights)
    world.gpu = Gpu("GeForce RTX 4090", (8, 9), (12, 9))
    later, said = make_runner(weights)
    np.testing.assert_array_equal(later(picture()), enlarged(picture()))
    assert len(world.builds) == 1 and not said
    later.close()


def test_the_progress_of_a_build_is_reported_seldom() -> None:
    said: list[str] = []
    times = iter([0.0, 1.0, 16.0, 16.0, 17.0, 40.0, 40.0])
    tell = report_seldom(said.append, lambda: next(times))
    tell("parsing", None)
    tell("timing", 0.25)
    tell("timing", 0.3)
    tell("writing", None)
    assert said == ["still building: timing, 25%", "still building: writing"]


def test_a_runtime_alone_runs_version_compatible_engines(world: World, weights: Weights) -> None:
    ordinary, _ = make_runner(weights)
    ordinary(picture())
    ordinary.close()
    world.flavour.version, world.flavour.capabilities.builds = "10.16.1.11", False
    alone, _ = make_runner(weights)
    with pytest.raises(UsageError, match=r"runs engines and builds none; build one .*--version-compatible"):
        alone(picture())  # the engine of 8.6 is for 8.6 only
    world.flavour.version, world.flavour.capabilities.builds = "8.6.0", True
    wanted = profile_for(weights.spec, (1, 64, 64))
    builder = EngineProvider(weights, "fp16", world.flavour, options={"version_compatible": True})
    assert builder.obtain(wanted).about["flags"] == {"version_compatible": True}
    for version in ("10.16.1.11", "11.4.0.106"):
        world.flavour.version, world.flavour.capabilities.builds = version, False
        np.testing.assert_array_equal(alone(picture(seed=1)), enlarged(picture(seed=1)))
    alone.close()
    world.flavour.version = "8.5.3"
    older, _ = make_runner(weights)
    with pytest.raises(UsageError, match="builds none"):
        older(picture())
    older.close()


def test_a_runtime_alone_finds_engines_of_newer_builders(world: World, weights: Weights) -> None:
    world.flavour.version, world.flavour.capabilities.newer_operators = "10.16.1.11", True
    builder = EngineProvider(weights, "fp16", world.flavour, options={"version_compatible": True})
    builder.obtain(profile_for(weights.spec, (1, 64, 64)))
    world.flavour.version, world.flavour.capabilities.newer_operators = "11.4.0.106", False
    world.flavour.capabilities.builds = False
    alone, _ = make_runner(weights)
    np.testing.assert_array_equal(alone(picture()), enlarged(picture()))
    assert len(world.builds) == 1
    alone.close()
