"""Backends: against the PyTorch network, under threads, their errors, and what `auto` chooses and keeps."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.backends import autotune, registry
from restort.errors import RestortError, UsageError
from restort.models.spec import ElanSpec, RestormerSpec, Spec
from restort.runner import Array, Runner
from restort.utils import cpu as processor
from restort.utils.extras import install_command
from restort.weights.checkpoint import Weights

SPECS: dict[str, Spec] = {
    "elan": ElanSpec(2, 4, 30, 1, 3, (4, 8, 16), 255.0, 2),
    "restormer": RestormerSpec(3, 3, 16, (1, 2, 1, 1), 1, (1, 2, 4, 8), 2.66, False, "WithBias", False),
    "restormer-biasfree-gray": RestormerSpec(
        1, 1, 8, (1, 1, 1, 1), 1, (1, 2, 4, 8), 2.66, False, "BiasFree", False
    ),
}
PAIRS = [
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("torch", "fp32"),
    ("torch", "bf16"),
]


def benchmark(module: str) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests here, so that a graph is made once."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTORT_CACHE", str(root))
        yield root


def make_weights(name: str) -> Weights:
    pytest.importorskip("torch")
    state = benchmark("workloads").random_state(SPECS[name])
    return Weights(
        state, SPECS[name], {}, hashlib.sha256(name.encode()).hexdigest(), Path(f"{name}.safetensors")
    )


def image(spec: Spec, n: int, h: int, w: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n, spec.in_channels, h, w), np.float32)


def expected(weights: Weights, x: Array) -> Array:
    """The PyTorch network in float64."""
    import torch

    from restort.models.torch_network import build

    spec = weights.spec
    model = build(spec, weights.state, torch.float64)
    with torch.inference_mode():
        return np.asarray((model(torch.from_numpy(x).double() * spec.value_range) / spec.value_range).numpy())


def library(name: str) -> None:
    if not registry.installed(name):
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("form", SPECS)
@pytest.mark.parametrize(("backend", "precision"), PAIRS)
def test_agrees_with_the_network(form: str, backend: str, precision: str) -> None:
    library(backend)
    weights = make_weights(form)
    runner = registry.create(weights, backend, precision, threads=2)
    assert (runner.name, runner.precision, runner.spec) == (backend, precision, weights.spec)
    tolerance = 1e-4 if precision == "fp32" else 0.1
    for n, h, w in [(1, 32, 48), (2, 16, 32), (1, 32, 48), (1, 32, 48)]:  # a shape that comes back is special
        x = image(weights.spec, n, h, w)
        before, want = x.copy(), expected(weights, x)
        y = runner(x)
        assert y.dtype == np.float32 and y.flags.c_contiguous and y.shape == want.shape
        assert np.abs(y - want).max() <= tolerance * np.abs(want).max()
        assert np.array_equal(x, before)
    runner.close()
    runner.close()
    with pytest.raises(RestortError, match="closed"):
        runner(x)


@pytest.mark.parametrize(("backend", "precision"), PAIRS)
def test_the_wall(backend: str, precision: str) -> None:
    """Results are not clipped and stay the caller's; any array of numbers goes in; wrong shapes are refused."""
    library(backend)
    weights = make_weights("elan")
    runner = registry.create(weights, backend, precision, threads=1)
    x = image(weights.spec, 1, 16, 16)
    first = runner(x)
    kept = first.copy()
    runner(1 - x)
    assert np.array_equal(first, kept)
    assert runner(3 * x).max() > 1.5  # beyond white
    odd = np.asfortranarray(x.astype(np.float64))
    np.testing.assert_allclose(runner(odd), kept, rtol=0, atol=1e-4 if precision == "fp32" else 0.02)
    for shape in [(3, 16, 16), (1, 1, 16, 16), (1, 3, 0, 16)]:
        with pytest.raises(RestortError, match=r"takes arrays of shape \(N, 3, H, W\)"):
            runner(np.zeros(shape, np.float32))
    with pytest.raises(RestortError, match="multiples of 16, not 16 x 24"):
        runner(np.zeros((1, 3, 16, 24), np.float32))


@pytest.mark.parametrize(("backend", "precision"), PAIRS)
def test_threads_may_share_a_runner(backend: str, precision: str) -> None:
    library(backend)
    weights = make_weights("elan")
    runner = registry.create(weights, backend, precision, threads=1)
    inputs = [image(weights.spec, 1, 16 * (1 + i % 3), 32, seed=i) for i in range(12)]
    for x in inputs[:3] * 2:  # until every shape has its final form, so that results are the same to the bit
        runner(x)
    alone = [runner(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(runner, inputs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_openvino_keeps_few_compiled_shapes() -> None:
    library("openvino")
    runner: Any = registry.create(make_weights("elan"), "openvino", "fp32", threads=1)
    for _ in range(2):
        for i in range(5):
            runner(image(runner.spec, 1, 16, 16 * (i + 1)))
    assert len(runner._fixed) == 3


def test_peers_are_the_originals(shared: Path) -> None:
    """The benchmark's eager peer gives the originals' recorded outputs."""
    torch = pytest.importorskip("torch")
    from safetensors.numpy import load_file

    from restort.models.spec import detect

    for name in ["elan_light_x2_odd", "restormer_withbias", "restormer_dual_pixel"]:
        file = load_file(shared / "golden" / f"{name}.safetensors")
        state = {k.removeprefix("state."): v for k, v in file.items() if k.startswith("state.")}
        made = (
            benchmark("peers")
            .Eager(state, detect(state), torch.float64)(torch.from_numpy(file["input"]).double())
            .numpy()
        )
        assert np.abs(made - file["output_float64"]).max() <= 1e-10 * np.abs(made).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorflow"}, "unknown backend 'tensorflow'; use auto, onnxruntime, openvino, torch"),
        ({"precision": "int8"}, "unknown precision 'int8'; use auto, fp32, fp16, bf16, tf32 or mixed"),
        (
            {"backend": "onnxruntime", "precision": "bf16"},
            r"'onnxruntime' does not support bf16 \(supported: fp32\); use --backend",
        ),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_wrong_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.create(make_weights("elan"), **options)


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    here = registry.installed
    monkeypatch.setattr(registry, "installed", lambda name: name not in names and here(name))


def test_a_missing_library_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_weights("elan")
    absent(monkeypatch, "openvino", "torch")
    with pytest.raises(
        RestortError, match=rf"backend 'openvino' is not installed.*{re.escape(install_command('openvino'))}"
    ):
        registry.create(weights, "openvino")
    states = {state.name: state for state in registry.status()}
    assert states["onnxruntime"].works and states["onnxruntime"].version
    assert not states["torch"].installed and states["torch"].remedy == install_command("torch")
    with pytest.raises(RestortError, match="no backend that works here supports bf16; pip install"):
        registry.create(weights, precision="bf16")
    absent(monkeypatch, "onnxruntime")
    with pytest.raises(RestortError, match="no backend is installed"):
        registry.create(weights)


def test_a_broken_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_weights("elan")
    load = importlib.import_module

    def broken(name: str) -> Any:
        if name == "onnxruntime":
            raise ImportError("libgomp.so.1:\n cannot open")
        return load(name)

    monkeypatch.setattr(registry.importlib, "import_module", broken)
    with pytest.raises(RestortError, match=r"does not load \(libgomp.so.1: cannot open\).*--force-reinstall"):
        registry.create(weights, "onnxruntime")
    state = registry.status()[0]
    assert state.installed and not state.works and state.remedy and "libgomp" in (state.reason or "")


class Clock:
    """A clock that only runners move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake(Runner):
    """A runner that takes `seconds` and errs by `noise`."""

    def __init__(
        self, name: str, precision: str, spec: Spec, clock: Clock, seconds: float, noise: float
    ) -> None:
        self.name, self.precision, self.spec = name, precision, spec
        self.clock, self.seconds, self.noise, self.closed = clock, seconds, noise, False
        self.first = 0.0

    def __call__(self, x: Array) -> Array:
        self.clock.now += self.seconds + self.first
        self.first = 0.0
        return x + np.float32(self.noise)

    def close(self) -> None:
        self.closed = True


class Shop:
    """Stands for `create`: makes fakes of given speeds, counts them, and keeps what was said."""

    def __init__(self, seconds: dict[str, float | str], noise: float = 0.001) -> None:
        self.seconds, self.noise, self.clock = seconds, noise, Clock()
        self.first: dict[str, float] = {}
        self.made: list[Fake] = []
        self.said: list[str] = []

    def make(self, name: str, precision: str, weights: Weights, threads: int | None) -> Any:
        seconds = self.seconds[f"{name}/{precision}"]
        if isinstance(seconds, str):
            raise RestortError(seconds)
        noise = self.noise if precision == "bf16" else 0.0
        self.made.append(Fake(name, precision, weights.spec, self.clock, seconds, noise))
        self.made[-1].first = self.first.get(name, 0.0)
        return self.made[-1]

    def choose(self, weights: Weights, threads: int = 2) -> str:
        self.made, self.said = [], []
        pairs = [tuple(name.split("/")) for name in self.seconds]
        runner = autotune.choose(
            weights, pairs, threads=threads, notify=self.said.append, make=self.make, clock=self.clock
        )
        assert all(fake.closed for fake in self.made[:-1]) and not self.made[-1].closed
        return f"{runner.name}/{runner.precision}"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own and a processor with bfloat16."""
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "native_bfloat16", lambda: True)
    return tmp_path


SPEEDS: dict[str, float | str] = {
    "openvino/bf16": 0.1,
    "openvino/fp32": 0.2,
    "onnxruntime/fp32": 0.15,
}


@pytest.mark.parametrize(
    ("changes", "noise", "want"),
    [
        ({}, 0.001, "openvino/bf16"),
        ({}, 0.01, "onnxruntime/fp32"),  # 40 dB is too far from fp32
        ({}, float("nan"), "onnxruntime/fp32"),
        ({"openvino/bf16": 0.3}, 0.001, "onnxruntime/fp32"),
        ({"openvino/bf16": "broken", "openvino/fp32": "broken"}, 0.001, "onnxruntime/fp32"),
    ],
)
def test_auto_takes_the_fastest_that_is_near(
    fresh: Path, changes: dict[str, Any], noise: float, want: str
) -> None:
    shop = Shop(SPEEDS | changes, noise)
    weights = make_weights("elan")
    assert shop.choose(weights) == want
    assert len(shop.said) == 1 and want in shop.said[0] and "measured now" in shop.said[0]
    assert shop.choose(weights) == want  # from the cache: only the chosen one is made
    assert len(shop.made) == 1 and "measured before" in shop.said[0]


def test_auto_measures_again_where_it_must(fresh: Path) -> None:
    shop, weights = Shop(dict(SPEEDS)), make_weights("elan")

    def measured() -> bool:
        shop.choose(weights)
        return len(shop.made) > 1

    assert measured() and not measured()
    file = next((fresh / "timings").iterdir())
    whole = file.read_text()
    for damage in [
        "",
        "{",
        "[]",
        whole.replace("0.1", '"fast"'),
        whole.replace("0.1", "-1"),
        whole.replace("elan", "nale"),
    ]:
        file.write_text(damage)
        assert measured() and not measured(), damage
    assert json.loads(file.read_text())["seconds"] == pytest.approx(json.loads(whole)["seconds"])
    weights.digest = "f" * 64  # other weights: their bfloat16 has not been looked at
    assert measured() and not measured()
    shop.choose(weights, threads=1)
    assert len(shop.made) > 1 and len(list((fresh / "timings").iterdir())) == 2


def test_auto_stops_early(fresh: Path) -> None:
    shop = Shop({"openvino/fp32": 2.0, "onnxruntime/fp32": 1.0, "torch/fp32": 0.1})
    assert shop.choose(make_weights("elan")) == "openvino/fp32"
    assert [fake.name for fake in shop.made] == ["openvino", "openvino"]
    slow = Shop({"openvino/fp32": 0.01, "onnxruntime/fp32": 0.5})
    slow.choose(make_weights("restormer"))
    assert slow.clock.now == pytest.approx(3 * 0.01 + 2 * 0.5)  # hopeless after one warm run


def test_auto_times_warm_runs(fresh: Path) -> None:
    """A library that compiles in its first run is judged by the ones after."""
    shop = Shop({"onnxruntime/fp32": 0.2, "openvino/fp32": 0.1})
    shop.first = {"openvino": 2.0}
    assert shop.choose(make_weights("elan")) == "openvino/fp32"
    assert "0.10 s for 128x128" in shop.said[0]


def test_auto_says_what_was_too_far(fresh: Path) -> None:
    shop = Shop(dict(SPEEDS), 0.01)
    shop.choose(make_weights("elan"))
    assert "openvino/bf16 0.10 s (40 dB from fp32, 45 needed)" in shop.said[0]


def test_auto_without_bfloat16_or_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(autotune, "native_bfloat16", lambda: False)
    assert Shop(dict(SPEEDS)).choose(make_weights("elan")) == "onnxruntime/fp32"


def test_auto_says_why_nothing_runs(fresh: Path) -> None:
    shop = Shop({"openvino/fp32": "openvino is broken", "onnxruntime/fp32": "so is onnxruntime"})
    with pytest.raises(RestortError, match=r"no backend could run these weights: openvino is broken"):
        shop.choose(make_weights("elan"))


def test_auto_for_real(fresh: Path) -> None:
    said: list[str] = []
    weights = make_weights("elan")
    runner = registry.create(weights, threads=1, notify=said.append)
    x = image(weights.spec, 1, 16, 16)
    want = expected(weights, x)
    assert np.abs(runner(x) - want).max() <= 0.1 * np.abs(want).max()
    again = registry.create(weights, threads=1, notify=said.append)
    assert (again.name, again.precision) == (runner.name, runner.precision)
    if len(said) == 2:  # more than one backend is installed
        assert "measured now" in said[0] and "measured before" in said[1]


def test_sample_is_a_picture() -> None:
    for spec in SPECS.values():
        tile = autotune.sample(spec)
        assert tile.shape == (1, spec.in_channels, 128, 128) and tile.dtype == np.float32
        assert tile.min() >= 0 and tile.max() <= 1 and tile.std() > 0.1


def test_threads_count_cores_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(processor, "_TOPOLOGY", tmp_path)
    cases: list[tuple[set[int], float | None, int]] = [
        (set(range(8)), None, 4),
        ({0, 4}, None, 1),
        ({0, 1, 5}, None, 2),
        (set(range(8)), 1.5, 2),
        (set(range(8)), 16.0, 4),
    ]
    for allowed, quota, want in cases:
        monkeypatch.setattr(processor, "_allowed", lambda found=allowed: found)
        monkeypatch.setattr(processor, "_quota", lambda found=quota: found)
        assert processor.default_threads() == want
    assert processor.processor_name() and isinstance(processor.native_bfloat16(), bool)
