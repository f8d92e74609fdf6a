"""What tests of the command line share: small weights, a picture, and the answer of a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.fakes.fake_backend import ELAN, write_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "x4.safetensors", ELAN[4])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    write(path, Picture(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)))
    return path
