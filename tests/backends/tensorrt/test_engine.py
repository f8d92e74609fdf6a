"""Running an engine, on a fake GPU whose streams work late and in any order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from restort.backends.tensorrt import cuda
from restort.backends.tensorrt.engine import Engine, EngineRefused
from restort.errors import OutOfMemory, RestortError
from tests.fakes import fake_tensorrt
from tests.fakes.fake_cuda import FakeCuda
from tests.fakes.fake_tensorrt import enlarged


@pytest.fixture(params=[0, 1, 2])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda(seed=request.param)
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    yield fake


def picture(seed: int = 0, shape: tuple[int, ...] = (1, 3, 16, 24)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def test_one_shape_computes_copies_and_captures(gpu: FakeCuda) -> None:
    flavour = fake_tensorrt.flavour(gpu)
    engine = Engine(flavour, fake_tensorrt.plan())
    for i in range(4):
        np.testing.assert_array_equal(engine(picture(i)), enlarged(picture(i)))
    assert gpu.calls["GraphLaunch"] == 3  # the first call warms up, the second records
    assert flavour.opened[0].enqueued == 2 and flavour.opened[0].contexts == 1
    assert engine.peak_bytes() > 0
    engine.close()
    engine.close()
    assert gpu.used == 0 and not gpu.pinned and not gpu.handles
    with pytest.raises(RestortError, match="closed"):
        engine(picture())


def test_results_belong_to_the_caller(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan())
    first = engine(picture(0))
    kept = first.copy()
    engine(picture(1))
    assert first.flags.c_contiguous and first.flags.owndata
    np.testing.assert_array_equal(first, kept)


def test_a_stream_of_tiles_keeps_two_in_flight(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan())
    sent: list[int] = []

    def tiles() -> Iterator[np.ndarray]:
        for i in range(7):
            sent.append(i)
            yield picture(i)

    for i, y in enumerate(engine.stream(tiles())):
        np.testing.assert_array_equal(y, enlarged(picture(i)))
        assert len(sent) == min(i + 2, 7)
    engine.close()


def test_a_stream_left_early_frees_everything(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan())
    results = engine.stream(picture(i) for i in range(5))
    next(results)
    results.close()
    engine.close()
    assert gpu.used == 0


def test_shapes_come_and_go(gpu: FakeCuda) -> None:
    flavour = fake_tensorrt.flavour(gpu)
    engine = Engine(flavour, fake_tensorrt.plan())
    shapes = [(1, 3, 8 * i, 8) for i in range(1, 8)]
    for _ in range(2):
        for shape in shapes:
            np.testing.assert_array_equal(engine(picture(0, shape)), enlarged(picture(0, shape)))
    assert len(engine._contexts) == 4
    engine.close()
    assert gpu.used == 0 and not gpu.pinned


def test_a_library_that_allows_one_context_gets_one(gpu: FakeCuda) -> None:
    """TensorRT 8.6 without profile sharing."""
    flavour = fake_tensorrt.flavour(gpu)
    engine = Engine(flavour, fake_tensorrt.plan(sharing=False))
    for shape in ((1, 3, 16, 8), (1, 3, 8, 8), (1, 3, 16, 8)):
        np.testing.assert_array_equal(engine(picture(0, shape)), enlarged(picture(0, shape)))
        assert len(engine._contexts) == 1
    engine.close()
    assert gpu.used == 0


def test_threads_share_an_engine(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan())
    wrong: list[int] = []

    def work(seed: int) -> None:
        pictures = [picture(seed + i, (1, 3, 8 * (1 + i % 3), 16)) for i in range(12)]
        for x, y in zip(pictures, engine.stream(iter(pictures))):
            if not np.array_equal(y, enlarged(x)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong
    engine.close()
    assert gpu.used == 0


def test_what_cannot_be_captured_runs_without_a_graph(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan(behaves="uncapturable"))
    for i in range(4):
        np.testing.assert_array_equal(engine(picture(i)), enlarged(picture(i)))
    assert gpu.calls["GraphLaunch"] == 0 and gpu.calls["StreamBeginCapture"] == 1
    engine.close()
    assert gpu.used == 0 and not gpu.handles
    for name in ("StreamEndCapture", "StreamBeginCapture", "GraphInstantiate"):
        engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan())
        engine(picture())
        gpu.fail[name] = 901
        assert engine._capture(next(iter(engine._contexts.values()))) is None
        np.testing.assert_array_equal(engine(picture(5)), enlarged(picture(5)))
        engine.close()


def test_a_version_compatible_engine_brings_code_that_must_be_allowed(gpu: FakeCuda) -> None:
    flavour = fake_tensorrt.flavour(gpu)
    plan = fake_tensorrt.plan(compatible=True, version="8.6.0")
    with pytest.raises(EngineRefused, match="holds host code"):
        Engine(flavour, plan)
    engine = Engine(flavour, plan, host_code=True)
    np.testing.assert_array_equal(engine(picture()), enlarged(picture()))
    engine.close()


def test_errors_are_sentences(gpu: FakeCuda) -> None:
    flavour = fake_tensorrt.flavour(gpu)
    with pytest.raises(EngineRefused, match="opening the engine: the plan does not parse"):
        Engine(flavour, b"\0\1")
    engine = Engine(flavour, fake_tensorrt.plan())
    with pytest.raises(RestortError, match="does not take an input of 1x3x80x80"):
        engine(picture(0, (1, 3, 80, 80)))
    gpu.fail["MemcpyAsync"] = 700
    with pytest.raises(RestortError, match="stopped with an error"):
        engine(picture())
    engine.close()
    broken = Engine(flavour, fake_tensorrt.plan(behaves="fails"))
    with pytest.raises(RestortError, match="running the engine: a kernel failed"):
        broken(picture())


def test_memory_that_is_short_is_taken_from_other_shapes(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan(most=(4, 9, 512, 512)))
    engine(picture(0, (1, 3, 64, 64)))
    gpu.memory = gpu.used + 100_000
    np.testing.assert_array_equal(engine(picture(1, (1, 3, 72, 64))), enlarged(picture(1, (1, 3, 72, 64))))
    assert len(engine._contexts) == 1
    with pytest.raises(OutOfMemory, match="use smaller tiles"):
        engine(picture(0, (1, 3, 512, 512)))
    np.testing.assert_array_equal(engine(picture(2)), enlarged(picture(2)))
    engine.close()
    assert gpu.used == 0


def test_the_timer_leaves_copies_out(gpu: FakeCuda) -> None:
    engine = Engine(fake_tensorrt.flavour(gpu), fake_tensorrt.plan())
    once = engine.timer(picture())
    copies = gpu.calls["MemcpyAsync"]
    assert once() == 1.5 and gpu.calls["MemcpyAsync"] == copies
    assert gpu.calls["GraphLaunch"] == 2
