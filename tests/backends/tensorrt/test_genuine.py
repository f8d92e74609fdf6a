"""RestoRT on the genuine libraries of TensorRT 8.6, 10 and 11, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.backends.tensorrt.genuine import VERSIONS, in_genuine

NEWER = [version for version in VERSIONS if version != "8.6.0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_they_load(version: str) -> None:
    found = in_genuine(version, "tell([flavour.version, flavour.title, flavour.capabilities.to_json()])")
    assert found[:2] == [version, f"TensorRT {version} (lean)"]
    assert found[2]["bfloat16"] == (version != "8.6.0") and not found[2]["builds"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_runtime_alone_is_found_and_builds_nothing(version: str) -> None:
    code = """
from restort.backends.tensorrt import library
from restort.backends.tensorrt.options import BuildOptions, Profile
from restort.backends.tensorrt.provider import check_build
from restort.errors import UsageError
found = library.find("tensorrt")
try:
    check_build(found, BuildOptions(Profile.fixed(1, 64, 64), "fp16"))
except UsageError as error:
    tell([library.installed()["tensorrt"], found.version, str(error)])
"""
    installed, found, said = in_genuine(version, code)
    assert installed == found == version
    assert said.startswith(
        f"TensorRT {version} (lean) runs engines and builds none; build one for this model"
    )


@pytest.mark.parametrize(
    "version", NEWER
)  # 8.6's Runtime ends the process without a driver: it is asked for before
def test_a_runtime_without_a_driver_is_one_sentence(version: str) -> None:
    code = """
from restort.backends.tensorrt import cuda, engine, inspector
from restort.errors import RestortError
from tests.fakes.fake_cuda import FakeCuda
fake = FakeCuda(seed=0)
cuda.runtime = lambda: fake
said = []
for opened in (lambda: inspector.deserialize(flavour, b"plan"), lambda: engine.Engine(flavour, b"plan")):
    try:
        opened()
    except RestortError as error:
        said.append(str(error))
tell(said)
"""
    first, second = in_genuine(version, code)
    assert first == second and "\n" not in first
    assert first.startswith(
        "TensorRT failed while starting its runtime: the NVIDIA driver is absent or too old ("
    )
    assert first.endswith("; install a newer driver")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_registry_refuses_what_is_no_plugin(version: str, tmp_path: Path) -> None:
    other = tmp_path / "libother.so"
    other.write_text("no library")
    code = """
registry = flavour.module.get_plugin_registry()
libraries = [*sys.argv[2:], next(line.split()[-1] for line in open("/proc/self/maps") if "libm.so" in line)]
tell([registry.load_library(path) is None for path in libraries])
"""
    if sys.platform != "linux":
        pytest.skip("the names of loaded libraries are read from /proc")
    assert in_genuine(version, code, tmp_path / "absent.so", other) == [True, True, True]
