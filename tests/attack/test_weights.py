"""Damaged and hostile files of weights: weights or a sentence, quickly, and nothing in them is run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.attack import SEED, children, count
from tests.weights.test_checkpoint import SMALL, SMALL_ELAN, arrays

pytest.importorskip("resource", reason="limits of a process are those of POSIX")


@pytest.mark.timeout(7200)
def test_damaged_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    state = arrays(SMALL_ELAN)
    save_file(state, seeds / "a.safetensors")
    tensors = {name: torch.from_numpy(value) for name, value in arrays(SMALL).items()}
    for name, zipped in (("zip.pth", True), ("legacy.pth", False)):
        stream = io.BytesIO()
        torch.save({"params": tensors}, stream, _use_new_zipfile_serialization=zipped)
        (seeds / name).write_bytes(stream.getvalue())
    assert children.run("tests.attack.weight_tries", SEED, count(150, 1_500), tmp_path) == []
    assert not (tmp_path / "harmful").exists()
