"""Reading, computing and writing overlap; order, bounds and every promise of a folder stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.errors import RestortError
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.folder import collect
from restort.imaging.picture import Picture
from restort.inference import batch
from restort.inference import model as model_module
from restort.inference.batch import Options, Summary, pool_sizes, restore_files
from restort.inference.manifest import Manifest
from restort.inference.progress import Lines
from tests.fakes.fake_backend import ELAN, create, write_weights

COUNT = 12


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Restore a folder of COUNT small pictures with a stand-in network, three readers and four writers."""
    monkeypatch.setattr("restort.backends.registry.create", create, raising=False)
    monkeypatch.setattr(batch, "pool_sizes", lambda cores, on_gpu: (3, 4))
    weights = write_weights(tmp_path / "x2.safetensors", ELAN[2])
    for i in range(COUNT):
        values = np.random.default_rng(i).integers(0, 256, (10 + i, 12, 3), dtype=np.uint8)
        write(tmp_path / f"in/{i:02}.png", Picture(values), overwrite=True)

    def call(observer: Lines | None = None, options: Options = Options()) -> Summary:  # noqa: B008
        jobs = collect([tmp_path / "in"], tmp_path / "out")
        with restort.load(weights) as model:
            return restore_files(model, jobs, tmp_path / "out", options, observer or Lines(COUNT, quiet=True))

    return call


class Gauge:
    """How many calls are under way, and the most there have been."""

    def __init__(
        self, function: Callable[..., Any], seconds: Callable[[Path], float], together: int = 1
    ) -> None:
        """`together`: the first calls wait for one another until so many are under way, 20 s at most."""
        self.function, self.seconds, self.together = function, seconds, together
        self.met = threading.Event()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, path: Any, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self.together:
                self.met.set()
        try:
            self.met.wait(20)
            time.sleep(self.seconds(Path(path)))
            return self.function(path, *arguments, **options)
        finally:
            with self._lock:
                self.now -= 1


def number(path: Path) -> int:
    return int(path.stem)


def test_results_come_in_order_however_long_each_takes(
    run: Callable[..., Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model_module, "write", Gauge(write, lambda path: 0.06 if number(path) % 4 == 0 else 0)
    )
    monkeypatch.setattr(model_module, "read", Gauge(read, lambda path: 0.03 if number(path) % 3 == 0 else 0))
    summary = run()
    assert [number(result.source) for result in summary.files] == list(range(COUNT))
    assert summary.count("done") == COUNT
    for i in range(COUNT):
        source = read(tmp_path / f"in/{i:02}.png").pixels
        assert np.array_equal(read(tmp_path / f"out/{i:02}.png").pixels, source.repeat(2, 0).repeat(2, 1))
    assert run().count("skipped") == COUNT


def test_the_stages_overlap_within_their_numbers(
    run: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, reading = Gauge(write, lambda path: 0, together=4), Gauge(read, lambda path: 0, together=3)
    monkeypatch.setattr(model_module, "write", writing)
    monkeypatch.setattr(model_module, "read", reading)
    assert run().count("done") == COUNT
    assert (writing.most, reading.most) == (4, 3)


def test_memory_bounds_what_is_in_flight(
    run: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for nothing, one picture at a time goes through."""
    monkeypatch.setattr(batch, "available_memory", lambda: 0)
    writing, reading = Gauge(write, lambda path: 0.02), Gauge(read, lambda path: 0.02)
    monkeypatch.setattr(model_module, "write", writing)
    monkeypatch.setattr(model_module, "read", reading)
    assert run().count("done") == COUNT
    assert writing.most == 1 and reading.most == 1


def test_one_result_that_cannot_be_written_fails_alone(
    run: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(path: Path, *arguments: Any, **options: Any) -> Any:
        if number(path) == 5:
            raise RestortError(f"cannot write {path}: the disk is full; free some space")
        return write(path, *arguments, **options)

    monkeypatch.setattr(model_module, "write", sometimes)
    summary = run()
    assert [number(result.source) for result in summary.files if result.status == "failed"] == [5]
    assert "the disk is full" in (summary.files[5].message or "")
    monkeypatch.setattr(model_module, "write", write)
    again = run()
    assert (again.count("done"), again.count("skipped")) == (1, COUNT - 1)


def test_an_interruption_finishes_what_is_being_written(
    run: Callable[..., Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "write", Gauge(write, lambda path: 0.05))

    class Interrupting(Lines):
        def begin(self, source: Path) -> None:
            if number(source) == 4:
                raise KeyboardInterrupt

    summary = run(Interrupting(COUNT, quiet=True))
    assert summary.interrupted
    made = sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
    assert [result.source.stem for result in summary.files] == made == ["00", "01", "02", "03"]
    assert not list((tmp_path / "out").rglob("*.part"))
    assert run().count("skipped") == 4


@pytest.mark.parametrize("cores, pools", [(1, (1, 1)), (2, (1, 1)), (4, (1, 2)), (16, (4, 8)), (128, (4, 8))])
def test_pools(cores: int, pools: tuple[int, int]) -> None:
    assert pool_sizes(cores) == pools


@pytest.mark.parametrize(
    "cores, pools", [(1, (1, 1)), (2, (1, 1)), (4, (1, 3)), (16, (4, 12)), (128, (4, 16))]
)
def test_pools_beside_a_gpu(cores: int, pools: tuple[int, int]) -> None:
    assert pool_sizes(cores, on_gpu=True) == pools


def test_a_picture_that_is_done_needs_no_claim(run: Callable[..., Summary], tmp_path: Path) -> None:
    assert run().count("done") == COUNT
    other = Manifest(tmp_path / "out")
    with ExitStack() as claims:
        for i in range(COUNT):
            assert claims.enter_context(other.claim(tmp_path / f"out/{i:02}.png"))
        assert run().count("skipped") == COUNT
