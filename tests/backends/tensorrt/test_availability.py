"""Whether engines can run here, and whether `auto` runs one."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from restort.backends import registry
from restort.errors import RestortError
from restort.utils.gpu import Gpu, Unavailable
from restort.weights.checkpoint import Weights
from tests.fakes.fake_gpu import World, make_runner, picture


def test_the_backend_is_registered(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from restort.backends.tensorrt import availability

    assert registry._library("tensorrt") in ("tensorrt", "tensorrt_rtx")
    monkeypatch.setattr(registry, "_library", lambda name: "numpy")  # something that is here
    monkeypatch.setattr(
        availability, "check_available", lambda: Unavailable("no NVIDIA driver is loaded", "install it")
    )
    with pytest.raises(
        RestortError, match="cannot use backend 'tensorrt': no NVIDIA driver is loaded; install it"
    ):
        registry.create(weights, "tensorrt")
    monkeypatch.setattr(availability, "check_available", lambda: None)
    monkeypatch.setattr(availability, "is_ready", lambda weights, precision: False)
    said: list[str] = []
    assert registry._on_a_gpu(weights, "auto", "auto", None, said.append) is None and not said
    with caplog.at_level(logging.INFO):
        found: Any = registry.create(weights, "tensorrt", notify=said.append)
    assert found.name == "tensorrt" and found.precision == "fp16"
    found(picture())
    assert said and "building" in said[0]
    found.close()
    monkeypatch.setattr(availability, "is_ready", lambda weights, precision: precision == "fp16")
    taken = registry.create(weights, notify=said.append)
    assert taken.name == "tensorrt" and "auto selected tensorrt/fp16 on NVIDIA H100" in said
    taken.close()


def test_auto_takes_engines_that_are_there(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restort.backends.tensorrt import availability, library

    monkeypatch.setattr(library, "installed", lambda: {"tensorrt": "8.6.0"})
    assert not availability.is_ready(weights, "fp16")
    first, _ = make_runner(weights)
    first(picture())
    first.close()
    assert availability.is_ready(weights, "fp16") and not availability.is_ready(weights, "fp32")
    world.gpu = Gpu("NVIDIA H200", (9, 0), (13, 0))
    assert not availability.is_ready(weights, "fp16")


def test_what_is_missing_is_found_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from restort.backends.tensorrt import availability

    monkeypatch.setattr(availability, "query_gpu", lambda: Gpu("GPU", (9, 0), (13, 0)))
    monkeypatch.setattr(availability, "_has", lambda module: False)
    found = availability.check_available()
    assert found is not None and found.remedy == "pip install cuda-python"
