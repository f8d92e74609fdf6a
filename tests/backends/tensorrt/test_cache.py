"""The engine cache: one build however many want it, and nothing stale, damaged or foreign is ever used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from restort.backends.tensorrt import sidecar
from restort.backends.tensorrt.cache import EngineCache, TimingCache, limit_bytes
from restort.backends.tensorrt.engine_key import EngineKey, graph_digest
from restort.backends.tensorrt.options import Built, Profile
from restort.errors import RestortError, UsageError

PROFILE = Profile((1, 8, 8), (1, 64, 64), (1, 128, 128))


def key(**changes: Any) -> EngineKey:
    wanted = EngineKey(
        "Tiny x2",
        "tensorrt",
        "8.6.0",
        ("9.0",),
        "NVIDIA H100",
        "13.0",
        graph_digest("ab" * 32),
        PROFILE,
        "fp16",
    )
    return dataclasses.replace(wanted, **changes)


def built(plan: bytes = b"plan") -> Built:
    digest = hashlib.sha256(plan).hexdigest()
    return Built(plan, {"schema": 1, "bytes": len(plan), "sha256": digest, "seconds": 1.0})


class Maker:
    def __init__(self, plan: bytes = b"plan") -> None:
        self.plan, self.calls = plan, 0

    def __call__(self) -> Built:
        self.calls += 1
        return built(self.plan)


def obtain(cache: EngineCache, wanted: EngineKey, make: Any = None) -> tuple[Any, list[str]]:
    said: list[str] = []
    return cache.obtain(wanted, make or Maker(), said.append), said


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    cache, make = EngineCache(tmp_path), Maker()
    stored, said = obtain(cache, key(), make)
    assert stored.built and stored.path.read_bytes() == b"plan"
    assert len(said) == 1 and said[0].endswith("none is cached yet")
    again, said = obtain(cache, key(), make)
    assert not again.built and again.path == stored.path and not said and make.calls == 1
    assert stored.path.name.startswith("tiny-x2-fp16-128x128-")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "10.16.1"}, "version of the library is 8.6.0, not 10.16.1"),
        ({"gpu": "NVIDIA H200"}, "GPU is NVIDIA H100, not NVIDIA H200"),
        ({"targets": ("8.9",)}, "compute capability is 9.0, not 8.9"),
        ({"driver": "12.8"}, "driver is 13.0, not 12.8"),
        ({"graph": "00" * 32}, "it has another graph"),
        ({"flags": {"level": 5}}, "it has other build options"),
        ({"profile": Profile.fixed(1, 64, 64)}, "it has another profile"),
        ({"keep_fp32": ("body.0",)}, "it has another choice of blocks"),
    ],
)
def test_every_fact_of_the_key_counts(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    cache = EngineCache(tmp_path)
    obtain(cache, key())
    stored, said = obtain(cache, key(**change))
    assert stored.built and len(said) == 1 and word in said[0]
    assert len(cache.entries()) == 2


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda path: path.write_bytes(b"plam"), "damaged (its content has changed)"),
        (lambda path: path.write_bytes(b"pl"), "damaged (it has 2 bytes instead of 4)"),
        (lambda path: sidecar.path_of(path).unlink(), "unusable"),
        (lambda path: sidecar.path_of(path).write_text("{"), "unusable"),
        (lambda path: _edit(path, gpu="another"), "different (its GPU is another, not NVIDIA H100)"),
        (lambda path: path.unlink(), "none is cached yet"),
    ],
)
def test_damage_is_told_and_built_over(tmp_path: Path, harm: Any, word: str) -> None:
    cache = EngineCache(tmp_path)
    stored, _ = obtain(cache, key())
    harm(stored.path)
    again, said = obtain(cache, key())
    assert again.built and again.path.read_bytes() == b"plan" and sidecar.problem(again.path) is None
    assert len(said) == 1
    if word != "none is cached yet":
        assert word in said[0]


def _edit(path: Path, **changes: Any) -> None:
    about = json.loads(sidecar.path_of(path).read_text())
    about["key"].update(changes)
    sidecar.path_of(path).write_text(json.dumps(about))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)

    def fail() -> Built:
        raise RestortError("no kernel")

    with pytest.raises(RestortError, match="no kernel"):
        obtain(cache, key(), fail)
    assert not cache.entries()
    assert obtain(cache, key())[0].built


WORKER = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from tests.backends.tensorrt.test_cache import key, built
from restort.backends.tensorrt.cache import EngineCache
def make():
    with open(sys.argv[4], "a") as log:
        log.write("built\\n")
    while not Path(sys.argv[5]).exists():  # the build ends when the test says so
        time.sleep(0.02)
    return built(b"plan of one process")
say = lambda line: print(line, flush=True)
print(EngineCache(Path(sys.argv[3])).obtain(key(), make, say).path.read_bytes().decode())
"""


def worker(tmp_path: Path, end: str = "end") -> subprocess.Popen[str]:
    """A process that wants the engine; a build of it ends when the file `end` is there."""
    import restort

    places = (str(Path(__file__).parents[3]), str(Path(restort.__file__).parents[1]))
    command = [
        sys.executable,
        "-c",
        WORKER,
        *places,
        str(tmp_path / "c"),
        str(tmp_path / "log"),
        str(tmp_path / end),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def until(happens: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_processes_that_want_the_same_engine_build_it_once(tmp_path: Path) -> None:
    first = worker(tmp_path)
    until((tmp_path / "log").exists)
    others = [worker(tmp_path) for _ in range(2)]
    for process in others:
        assert process.stdout is not None and "another process that is building" in process.stdout.readline()
    (tmp_path / "end").touch()
    said = [process.communicate(timeout=60)[0] for process in (first, *others)]
    assert (tmp_path / "log").read_text() == "built\n"
    assert all(text.endswith("plan of one process\n") for text in said)


def test_a_killed_builder_is_followed_by_the_next(tmp_path: Path) -> None:
    first = worker(tmp_path, "never")
    until((tmp_path / "log").exists)
    (path,) = (tmp_path / "c" / "locks").glob("*.engine.lock")
    name = path.name.removesuffix(".lock")
    (tmp_path / "c" / f".{name}.0123").write_bytes(b"half")  # as a builder killed while writing leaves it
    (tmp_path / "c" / name).write_bytes(b"an engine without its sidecar")
    (tmp_path / "end").touch()
    waiting = worker(tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    said, _ = waiting.communicate(timeout=60)
    assert "unusable" in said and said.endswith("plan of one process\n")
    assert (tmp_path / "log").read_text() == "built\nbuilt\n"
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == sorted(["locks", name, f"{name}.json"])


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit=35)
    keys = [key(graph=str(i)) for i in range(4)]
    stored = []
    for i, wanted in enumerate(keys[:3]):
        stored.append(obtain(cache, wanted, Maker(b"0123456789"))[0])
        os.utime(sidecar.path_of(stored[-1].path), (1000 + i, 1000 + i))
    assert not obtain(cache, keys[0])[0].built  # used again
    obtain(cache, keys[3], Maker(b"0123456789"))
    assert {s.path.name for s in cache.entries()} == {keys[i].name for i in (0, 2, 3)}
    big = obtain(cache, key(graph="big"), Maker(b"x" * 100))[0]
    assert [s.path for s in cache.entries()] == [big.path]  # alone it may be over the limit


def test_engines_that_cover_a_size(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    wide = obtain(cache, key())[0]
    wider = obtain(cache, key(profile=Profile((1, 8, 8), (1, 64, 64), (4, 512, 512))))[0]
    fixed = obtain(cache, key(profile=Profile.fixed(1, 64, 64), flags={"level": 5}))[0]
    obtain(cache, key(profile=Profile.fixed(1, 64, 64), precision="fp32"))
    asked = key(profile=Profile.fixed(1, 1, 1))

    def found(*size: int) -> list[Path]:
        return [stored.path for stored in cache.covering(asked, size)]  # type: ignore[arg-type]

    assert found(1, 64, 64) == [fixed.path, wide.path, wider.path]
    assert found(1, 72, 64) == [wide.path, wider.path]
    assert found(2, 64, 64) == [wider.path] and not found(1, 1024, 64)
    wide.path.write_bytes(b"gone")
    assert found(1, 72, 64) == [wider.path]
    ahead = key(flavour="rtx", gpu=None, driver=None, targets=("8.6", "8.9"))
    stored = obtain(cache, ahead)[0]
    here = dataclasses.replace(ahead, targets=("8.9",))
    assert [s.path for s in cache.covering(here, (1, 64, 64))] == [stored.path]
    assert not cache.covering(dataclasses.replace(ahead, targets=("12.0",)), (1, 64, 64))


def test_clearing_spares_what_is_being_built(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    keys = [key(graph=str(i)) for i in range(3)]
    stored = [obtain(cache, wanted)[0] for wanted in keys]
    os.utime(sidecar.path_of(stored[0].path), (1, 1))
    os.utime(stored[0].path, (1, 1))
    assert cache.clear(older_than_s=3600)[0] == 1 and len(cache.entries()) == 2
    (tmp_path / f".{keys[1].name}.json.99").write_text("left over")
    with cache._lock(keys[2].name, lambda: None):
        count, freed = cache.clear()
    assert count == 1 and freed > 4 and [s.path for s in cache.entries()] == [stored[2].path]
    assert not list(tmp_path.glob(".*"))
    assert cache.clear()[0] == 1 and EngineCache(tmp_path / "nowhere").clear() == (0, 0)


def test_discarding_says_why(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    stored, _ = obtain(cache, key())
    said: list[str] = []
    cache.discard(stored, said.append, "it was built by another version")
    assert not cache.entries() and len(said) == 1 and "another version" in said[0]


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit_bytes() == 20 << 30
    monkeypatch.setenv("RESTORT_ENGINES_GIB", "0.5")
    assert limit_bytes() == 1 << 29
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv("RESTORT_ENGINES_GIB", text)
        with pytest.raises(UsageError, match="RESTORT_ENGINES_GIB"):
            limit_bytes()


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RestortError, match="set RESTORT_CACHE"):
        obtain(EngineCache(tmp_path / "file" / "engines"), key())


def test_timings_are_merged(tmp_path: Path) -> None:
    timings = TimingCache("tensorrt-8.6.0", "NVIDIA H100", "9.0", "13.0", tmp_path)
    assert timings.read() is None
    timings.merge(b"a", lambda a, b: a + b)
    timings.merge(b"b", lambda a, b: a + b)
    assert timings.read() == b"ab"

    def damaged(a: bytes, b: bytes) -> bytes:
        raise ValueError

    timings.merge(b"c", damaged)
    assert timings.read() == b"c"
    other = dataclasses.replace(timings, driver="12.8")
    assert other.read() is None and other.path != timings.path
    (tmp_path / "file").write_text("")
    dataclasses.replace(timings, folder=tmp_path / "file").merge(b"x", damaged)
