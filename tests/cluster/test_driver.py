"""The driver with real workers in this process, whose deaths are arranged: nothing is lost or made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.cluster import run as cluster
from restort.cluster.driver import FIRST_SHARD, FRUITLESS_STARTS
from restort.cluster.ray_workers import layout
from restort.cluster.shards import Died, Event, Finished, Setup, Shard, Started
from restort.cluster.worker import Worker, WorkerManifest
from restort.errors import RestortError, UsageError
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.inference.batch import FileResult, Options
from restort.inference.manifest import Fingerprint, Manifest
from tests.fakes.fake_backend import ELAN, write_weights

pytestmark = pytest.mark.usefixtures("fake_backend")
COUNT = 23
PICTURES = 5_000


class Here:
    """Workers in this process. `deadly` pictures end their worker; `dies_after` makes a number of pictures before."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.workers: dict[int, Worker] = {}
        self.queue: list[tuple[int, Shard | None]] = []
        self.hired = 0
        self.deadly: set[str] = set()
        self.dies_after: int | None = None
        self.stillborn = False

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def hire(self) -> int:
        self.hired += 1
        self.queue.append((self.hired, None))
        return self.hired

    def give(self, worker: int, shard: Shard) -> None:
        self.queue.append((worker, shard))

    def wait(self, seconds: float) -> list[Event]:
        worker, shard = self.queue.pop(0)
        if shard is None:
            if self.stillborn:
                return [Died(worker, "no memory")]
            self.workers[worker] = Worker(self.setup)
            return [Started(worker, *self.workers[worker].start())]
        return [self._restore(worker, shard)]

    def _restore(self, worker: int, shard: Shard) -> Event:
        names = [job.source.name for job in shard.jobs]
        end = next((place for place, name in enumerate(names) if name in self.deadly), None)
        if end is None and self.dies_after is not None and len(names) > 1:
            end, self.dies_after = self.dies_after, None
        if end is None:
            results, seconds = self.workers[worker].restore(shard)
            return Finished(worker, tuple(results), seconds)
        self.workers[worker].restore(Shard(shard.jobs[:end], shard.lines))
        self.workers.pop(worker).close()
        self.queue = [(other, waiting) for other, waiting in self.queue if other != worker]
        return Died(worker, "killed")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """in/deep/0.png and 22 more, of different contents; in/note.heix is no picture."""
    random = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "in" / ("deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, Picture(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)))
    return tmp_path / "in"


@pytest.fixture
def restore(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run in this process with two workers; keywords are attributes of Here. Returns totals and results by name."""
    weights = write_weights(tmp_path / "x2.safetensors", ELAN[2])

    def call(**arranged: Any) -> Any:
        def workers(setup: Setup, gpus: int, cpus: int) -> Here:
            here = Here(setup)
            for name, value in arranged.items():
                setattr(here, name, value)
            return here

        results: list[FileResult] = []
        monkeypatch.setattr(cluster, "connect", lambda address, workers: (2, 0, 1))
        monkeypatch.setattr(cluster, "RayWorkers", workers)
        totals = cluster.run(
            photos,
            tmp_path / "out",
            weights,
            {"offline": True},
            Options(),
            address="local",
            workers=2,
            suffix=None,
            left_out=[],
            seen=results.append,
            notify=lambda line: None,
        )
        assert Counter(result.source for result in results).most_common(1)[0][1] == 1
        return totals, {result.source.name: result for result in results}

    return call


def made(root: Path) -> Counter[str]:
    """How often each target was made, from the manifest."""
    lines = (root / ".restort/manifest.jsonl").read_text().split("\n")
    return Counter(record["target"] for record in map(json.loads, filter(None, lines)) if record["made"])


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def test_a_run_and_its_resumption(restore: Any, tmp_path: Path, photos: Path, restort: Any) -> None:
    totals, _ = restore()
    assert (totals.done, totals.failed) == (COUNT, 0)
    assert not list((tmp_path / "out/.restort/workers").iterdir())
    alone = restort("run", photos, "-o", tmp_path / "alone", "--weights", tmp_path / "x2.safetensors")
    assert alone.status == 0 and files(tmp_path / "out") == files(tmp_path / "alone")

    (tmp_path / "out/0.png").unlink()
    (photos / "2.png").write_bytes((photos / "4.png").read_bytes())
    totals, results = restore()
    assert (totals.done, totals.skipped) == (2, COUNT - 2)
    assert {name for name, result in results.items() if result.status == "done"} == {"0.png", "2.png"}

    again = restort("run", photos, "-o", tmp_path / "out", "--weights", tmp_path / "x2.safetensors")
    assert again.status == 0 and f"0 done, {COUNT} up to date" in again.err


def test_a_plain_run_is_resumed(restore: Any, tmp_path: Path, photos: Path, restort: Any) -> None:
    restort(
        "run",
        photos / "0.png",
        photos / "2.png",
        "-o",
        tmp_path / "out",
        "--weights",
        tmp_path / "x2.safetensors",
    )
    totals, _ = restore()
    assert (totals.done, totals.skipped) == (COUNT - 2, 2)


def test_a_dead_worker_costs_nothing(restore: Any, tmp_path: Path) -> None:
    totals, results = restore(dies_after=2)
    assert (totals.done, totals.failed, totals.deaths) == (COUNT, 0, 1)
    assert all(result.result_size == (16, 12) for result in results.values())
    assert set(made(tmp_path / "out").values()) == {1} and len(made(tmp_path / "out")) == COUNT


def test_a_picture_that_kills_two_workers_fails_and_no_other(restore: Any, tmp_path: Path) -> None:
    totals, results = restore(deadly={"3.png"})
    assert (totals.done, totals.failed, totals.deaths) == (COUNT - 1, 1, 2)
    assert "2 workers died while they had it in hand; --retry" in results["3.png"].message
    assert set(made(tmp_path / "out").values()) == {1}
    totals, results = restore()  # the next run leaves it alone, too
    assert (totals.skipped, totals.failed, totals.deaths) == (COUNT - 1, 1, 0)


def test_records_of_a_run_that_was_killed_whole(
    restore: Any, tmp_path: Path, photos: Path, restort: Any
) -> None:
    restore()
    folder = tmp_path / "out/.restort"
    (folder / "workers").mkdir(exist_ok=True)
    (folder / "manifest.jsonl").rename(folder / "workers/host-1-abc.jsonl")  # as if nothing had been moved
    again = restort("run", photos, "-o", tmp_path / "out", "--weights", tmp_path / "x2.safetensors")
    assert again.status == 0 and f"0 done, {COUNT} up to date" in again.err


def test_records_of_a_living_worker_stay(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"a")
    worker = WorkerManifest(tmp_path)
    worker.finish(worker.begin(picture, picture, Fingerprint.of(picture), {}), picture, {})
    assert Manifest(tmp_path).state(picture, picture, {}) == "unknown" and worker.path.exists()
    worker.close()
    assert Manifest(tmp_path).state(picture, picture, {}) == "done" and not worker.path.exists()


def test_workers_that_cannot_start(restore: Any) -> None:
    with pytest.raises(
        RestortError, match=f"{FRUITLESS_STARTS} workers died before they had loaded the model"
    ):
        restore(stillborn=True)


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [
        ([{"CPU": 128, "GPU": 8}], None, (8, 1, 16)),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 8}], None, (8, 1, 1)),  # the first has no GPU: its cores do not help
        ([{"CPU": 64, "GPU": 4}, {"CPU": 32, "GPU": 4}], 3, (3, 1, 8)),
        ([{"CPU": 16}, {"CPU": 8}, {"memory": 1.0}], None, (2, 0, 8)),
        ([{"CPU": 16}, {"CPU": 16}], 5, (5, 0, 5)),
        ([{"CPU": 2}], 4, (4, 0, 1)),
    ],
)
def test_workers_fit_their_machines(
    machines: Any, workers: int | None, expected: tuple[int, int, int]
) -> None:
    assert layout(machines, workers) == expected


def test_more_workers_than_gpus() -> None:
    with pytest.raises(UsageError, match="--workers 3 is more than the 2 GPUs"):
        layout([{"CPU": 4, "GPU": 2}], 3)


def test_one_driver_at_a_time(restore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = cluster._only_driver(tmp_path / "out")
    with pytest.raises(RestortError, match="another cluster run works in"):
        restore()
    with pytest.raises(RestortError, match="a cluster run works in"):
        Manifest(tmp_path / "out")
    held.release()
    Manifest(tmp_path / "out")


def test_wrong_inputs(restore: Any, photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match="there is no picture in"):
        restore()
    assert FIRST_SHARD < COUNT  # the other tests have more than one shard


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--pictures") or PICTURES
    script = Path(__file__).with_name("pretended.py")
    done = subprocess.run(
        [sys.executable, script, str(count), tmp_path],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    )
    report = json.loads(done.stdout)
    print(report)
    assert report["done"] == count
    assert report["peak_mb"] < (1000 if count > PICTURES else 200)
