"""A fake machine with a GPU and TensorRT, for tests of the backend."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.backends.fused import aot_cache
from restort.backends.fused.aot_cache import AotRequest
from restort.backends.tensorrt import cuda, plugin, provider, runner
from restort.backends.tensorrt.aot_builder import aot_graph, joined, package_report
from restort.backends.tensorrt.options import BuildOptions, Built
from restort.backends.tensorrt.runner import TensorrtRunner
from restort.utils.gpu import Gpu
from restort.weights.checkpoint import Weights
from tests.fakes import fake_tensorrt
from tests.fakes.empty_aot import aot_of
from tests.fakes.fake_cuda import FakeCuda
from tests.fakes.fake_driver import use_gpu

H100 = Gpu("NVIDIA H100", (9, 0), (13, 0))


class World:
    """A machine with a GPU and TensorRT; `builds` are the options of every engine built."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.flavour = fake_tensorrt.flavour(self.cuda)
        self.gpu: Gpu | None = H100
        self.builds: list[BuildOptions] = []
        self.behaves: dict[str, str] = {}
        self.packages: list[Path] = []
        self.compiled: list[str] = []
        self.loaded = 0

    def load_plugin(self, flavour: Any, notify: Any = None) -> None:
        self.loaded += 1

    def made(self, request: AotRequest, processes: int | None = None) -> bytes:
        self.compiled.append(request.size)
        return aot_of(request)

    def build_aot_engine(
        self, flavour: Any, weights: Any, packages: list[Path], options: BuildOptions
    ) -> Built:
        """An engine of RestoRT's own kernels, of a package of tests/fakes/empty_aot.py."""
        assert self.loaded, "the plugin comes first"
        self.packages += packages
        content = joined(packages)
        built = self.build(flavour, aot_graph(weights, content), options)
        about = {
            "kernels": "fused",
            "aot": package_report(content),
            "layers": {"source": "plugin", "RestortPass": 1},
        }
        return Built(built.plan, built.report | about)

    def build(self, flavour: Any, graph: Any, options: BuildOptions) -> Built:
        assert graph.graph.output and options.progress is not None
        self.builds.append(options)
        low, high = options.profile.min, options.profile.max
        data = fake_tensorrt.plan(
            2,
            (low[0], 1, *low[1:]),
            (high[0], 9, *high[1:]),
            behaves=self.behaves.get(options.precision, ""),
            compatible=options.version_compatible,
            others=[(size[0], 9, *size[1:]) for size in options.profile.others],
            version=flavour.version,
        )
        about = {entry.key: entry.value for entry in graph.metadata_props}
        report: dict[str, Any] = {
            "flags": {"version_compatible": True} if options.version_compatible else {},
            "layers": {},
            "precision": options.precision,
            "graph": {"nodes": len(graph.graph.node)},
        }
        report |= {
            "schema": 1,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "seconds": 2.0,
        }
        report["model"] = {"weights_sha256": about["restort.weights_sha256"]}
        return Built(data, report, b"times of " + options.precision.encode())


@contextmanager
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = World()
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda, "runtime", lambda: found.cuda)
    monkeypatch.setattr(runner, "find", lambda name: found.flavour)
    use_gpu(monkeypatch, lambda: found.gpu)
    monkeypatch.setattr(provider, "build", found.build)
    monkeypatch.setattr(provider, "build_aot_engine", found.build_aot_engine)
    monkeypatch.setattr(aot_cache, "compile_request", found.made)
    monkeypatch.setattr(plugin, "load", found.load_plugin)
    monkeypatch.setattr(provider, "timing_cache_combiner", lambda flavour: lambda a, b: a + b"," + b)
    yield found
    assert not found.cuda.used and not found.cuda.pinned


def picture(h: int = 32, w: int = 48, n: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 3, h, w), np.float32)


def make_runner(
    weights: Weights, precision: str = "fp16", **options: Any
) -> tuple[TensorrtRunner, list[str]]:
    """A runner, and the lines that it says and warns."""
    said: list[str] = []
    found = TensorrtRunner(weights, precision, **options)
    found.notify = found.warn = said.append
    return found, said
