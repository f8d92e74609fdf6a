"""The cache of graphs."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from restort.errors import RestortError
from restort.export import graph_cache
from restort.models.elan_names import shift_weights
from restort.models.spec import ElanSpec, parameter_shapes
from restort.utils.cache_dir import distrusted
from restort.weights.checkpoint import Weights

SPEC = ElanSpec(2, 2, 60, 1, 3, (4, 8, 16), 255.0, 2)


def make_weights(digest: str = "ab" * 32) -> Weights:
    state = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(SPEC).items()}
    state |= {n: shift_weights(len(v)) for n, v in state.items() if n.endswith("shift_conv.weight")}
    return Weights(state, SPEC, {}, digest, Path("small.safetensors"))


def ask(root: str) -> str:
    os.environ["RESTORT_CACHE"] = root
    return str(graph_cache.graph_path(make_weights()))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_made_once_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph_cache.graph_path(make_weights())
    assert path.parent == root / "graphs"
    assert path.name == f"{'ab' * 8}-fp32-{graph_cache.EMITTER}.onnx"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(graph_cache, "emit", lambda *_, **__: pytest.fail("made again"))
    assert graph_cache.graph_path(make_weights()) == path


def test_precisions_and_weights_have_their_own_files(root: Path) -> None:
    paths = {graph_cache.graph_path(make_weights(d * 32), p) for d in ("ab", "cd") for p in ("fp32", "fp16")}
    assert len(paths) == 4


@pytest.mark.parametrize("damage", [b"", b"not a graph", None])
def test_a_damaged_file_is_made_again(root: Path, damage: bytes | None) -> None:
    path = graph_cache.graph_path(make_weights())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert graph_cache.graph_path(make_weights()) == path
    assert path.read_bytes() == whole


def test_a_file_of_other_weights_under_the_name_is_made_again(root: Path) -> None:
    path = graph_cache.graph_path(make_weights("ab" * 32))
    graph_cache.graph_path(make_weights("ab" * 31 + "cd"))
    kept = {e.key: e.value for e in onnx.load(path).metadata_props}
    assert kept["restort.weights_sha256"] == "ab" * 31 + "cd"


def test_two_processes_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        paths = set(pool.map(ask, [str(tmp_path)] * 4))
    (path,) = paths
    onnx.checker.check_model(path)
    assert [p.name for p in Path(path).parent.iterdir()] == [Path(path).name]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.99999])
def test_one_flipped_bit_is_noticed(root: Path, place: float) -> None:
    path = graph_cache.graph_path(make_weights())
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 4
    path.write_bytes(damaged)
    assert graph_cache.graph_path(make_weights()) == path
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "file"))
    path = graph_cache.graph_path(make_weights())
    onnx.checker.check_model(str(path))
    assert tmp_path not in path.parents
    assert "RESTORT_CACHE" in caplog.text


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(
        graph_cache, "_temporary_folder", lambda: SimpleNamespace(name=str(tmp_path / "file"))
    )
    with pytest.raises(RestortError, match=r"cannot write .*set RESTORT_CACHE"):
        graph_cache.graph_path(make_weights())


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")
def test_folders_are_private_and_files_of_others_are_not_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph_cache.graph_path(make_weights())
    assert [oct(folder.stat().st_mode & 0o777) for folder in (root, path.parent)] == ["0o700", "0o700"]
    before = path.stat().st_ino
    path.chmod(0o666)
    graph_cache.graph_path(make_weights())
    assert path.stat().st_ino != before, "made again: every user could write it"
    before = path.stat().st_ino
    path.parent.chmod(0o777)
    graph_cache.graph_path(make_weights())
    assert path.stat().st_ino != before, "made again: every user could replace it"
    path.parent.chmod(0o700)
    before = path.stat().st_ino
    assert graph_cache.graph_path(make_weights()) == path and path.stat().st_ino == before
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    expected = None if path.stat().st_uid == 0 else "it belongs to another user"
    assert distrusted(path) == expected, "root may have made it for everybody"
