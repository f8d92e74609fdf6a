"""A machine with a GPU and a TensorRT, played: what tests of the backend run in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faketensorrt
import pytest
from fakecuda import FakeCuda

from restort.backends.tensorrt import cuda, runner, supply
from restort.backends.tensorrt.build import BuildOptions, Built
from restort.backends.tensorrt.gpu import Gpu

H100 = Gpu("NVIDIA H100", "9.0", "13.0")


class World:
    """A machine with a GPU and a TensorRT; `builds` are the options of every engine that was built."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.flavour = faketensorrt.flavour(self.cuda)
        self.gpu = H100
        self.builds: list[BuildOptions] = []
        self.behaves: dict[str, str] = {}

    def build(self, flavour: Any, graph: Any, options: BuildOptions) -> Built:
        assert graph.graph.output and options.progress is not None
        self.builds.append(options)
        low, high = options.profile.min, options.profile.max
        data = faketensorrt.plan(
            2,
            (low[0], 1, *low[1:]),
            (high[0], 9, *high[1:]),
            behaves=self.behaves.get(options.precision, ""),
            version=flavour.version,
        )
        about = {entry.key: entry.value for entry in graph.metadata_props}
        report: dict[str, Any] = {"flags": {}, "layers": {}, "graph": {"nodes": len(graph.graph.node)}}
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
    monkeypatch.setattr(supply, "gpu", lambda: found.gpu)
    monkeypatch.setattr(supply, "build", found.build)
    monkeypatch.setattr(supply, "combiner", lambda flavour: lambda a, b: a + b"," + b)
    yield found
    assert not found.cuda.used and not found.cuda.pinned
