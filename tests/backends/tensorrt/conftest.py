"""Fixtures of the tests of backends/tensorrt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from restort.weights.checkpoint import Weights, load_weights
from tests.fakes.fake_backend import ELAN, write_weights
from tests.fakes.fake_gpu import World, playing


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A fake machine with a GPU and TensorRT."""
    with playing(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A small ELAN x2."""
    return load_weights(
        write_weights(tmp_path_factory.mktemp("w") / "tiny.safetensors", replace(ELAN[2], channels=30))
    )
