"""The plugin RestortPass in the genuine plugin registries of TensorRT 10 and 11, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from restort.backends.fused.aot_cache import AotRequest
from restort.backends.fused.aot_package import join_aot, read_aot, write_aot
from restort.backends.tensorrt import plugin
from restort.weights.checkpoint import Weights
from tests.backends.tensorrt.genuine import ROOT, compiled, headers, in_genuine, library_of
from tests.fakes.empty_aot import aot_of

VERSIONS = ("10.16.1.11", "11.4.0.106")
EMULATOR = ROOT / "tests" / "emulator"

if sys.platform != "linux":
    pytest.skip("the plugin is for Linux", allow_module_level=True)


@dataclass(frozen=True)
class Made:
    """What is compiled for one version: the plugin, and plugin_main.cpp with a stand-in for the driver."""

    version: str
    headers: Path
    plugin: Path
    program: Path


@pytest.fixture(scope="module", params=VERSIONS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    library_of(request.param)
    folder = tmp_path_factory.mktemp("made")
    found = headers(request.param, folder / "include")
    shared = ["-shared", "-fPIC", "-fvisibility=hidden"]
    library = compiled(folder / "pass.so", plugin.SOURCES / "restort_pass.cpp", *shared, headers=found)
    compiled(
        folder / "libcuda.so.1", EMULATOR / "libcuda.cpp", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"
    )
    program = compiled(folder / "plugin_main", EMULATOR / "plugin_main.cpp", headers=found)
    return Made(request.param, found, library, program)


@pytest.fixture(scope="module")
def package(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a small ELAN x2 at 1x16x16 that launches nothing."""
    file = tmp_path_factory.mktemp("package") / "pass.rtaot"
    file.write_bytes(empty(weights, (1, 16, 16)))
    return file


def empty(weights: Weights, shape: tuple[int, int, int]) -> bytes:
    return write_aot(replace(read_aot(aot_of(AotRequest(weights, "fp16", shape, 90))), kernels=()))


def life(made: Made, field: str, *shapes: str, **environment: str) -> tuple[list[str], list[str], list[str]]:
    """What plugin_main prints, its errors, and what it allocated."""
    program = made.program
    log = program.parent / "log"
    log.unlink(missing_ok=True)
    paths = {"LD_LIBRARY_PATH": str(program.parent), "FAKE_CUDA_LOG": str(log)}
    command = [str(program), str(library_of(made.version)), str(made.plugin), field, *shapes]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths, **environment})
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)
    calls = log.read_text().splitlines() if log.exists() else []
    return run.stdout.splitlines(), run.stderr.splitlines(), calls


def test_its_life(made: Made, package: Path) -> None:
    said, errors, calls = life(made, f"file:{package}", "1x3x16x16")
    size = package.stat().st_size
    assert said == [
        "RestortPass 2",
        "configured 0 output 1 3 32 32",
        f"serialized 1 plan {size}",
        *["changed 0 ran 0"] * 2,
        "end",
    ]
    assert not errors
    sizes = [int(line.split()[2]) for line in calls if line.startswith("alloc")]
    assert sizes == [1 << 20, 2 << 20, 2 << 20]  # weights once, scratch for each context
    assert len([line for line in calls if line.startswith("free")]) == 3


def test_several_sizes(made: Made, weights: Weights, tmp_path: Path) -> None:
    """Weights once for all contexts and sizes; scratch for each size of a context, when it comes to it."""
    file = tmp_path / "pass.rtaot"
    file.write_bytes(join_aot([empty(weights, shape) for shape in ((1, 16, 16), (1, 16, 32), (2, 48, 16))]))
    said, errors, calls = life(made, f"file:{file}", "2x3x48x16", "1x3x16x16", "1x3x16x32")
    outputs = ["2 3 96 32", "1 3 32 32", "1 3 32 64"]
    assert said == [
        "RestortPass 2",
        *[f"configured 0 output {output}" for output in outputs],
        f"serialized 1 plan {file.stat().st_size}",
        *["changed 0 ran 0"] * 6,
        "end",
    ]
    sizes = [int(line.split()[2]) for line in calls if line.startswith("alloc")]
    assert not errors and sizes == [1 << 20] + 6 * [2 << 20]
    said, errors, _ = life(made, f"file:{file}", "1x3x48x16")
    assert said[-2] == "changed 1 ran 1"
    assert errors[-1] == (
        "RestortPass: the input has the shape 1x3x48x16, and the AOT package 1x3x16x16, 1x3x16x32, 2x3x48x16"
    )


def test_another_size_and_another_gpu_are_refused(made: Made, package: Path) -> None:
    said, errors, _ = life(made, f"file:{package}", "1x3x16x24")
    assert said[1] == "configured 1 output 1 3 32 32" and said[-2] == "changed 1 ran 1"
    sentence = "RestortPass: the input has the shape 1x3x16x24, and the AOT package 1x3x16x16"
    assert errors and set(errors) == {sentence}
    said, errors, _ = life(made, f"file:{package}", "1x3x16x16", FAKE_CUDA_MAJOR="8")
    assert said[-1] == "not attached"
    assert errors == ["RestortPass: the AOT package is for compute capability 90, and the GPU has 80"]


def test_bad_packages_are_one_sentence(made: Made, package: Path, tmp_path: Path) -> None:
    data = package.read_bytes()
    damaged = bytearray(data)
    damaged[-1] ^= 1
    for content, expected in [
        (b"no package", "not an AOT package, or cut off: 10 bytes; give it as file:PATH"),
        (data[:-1], f"the AOT package has {len(data) - 1} of {len(data)} bytes"),
        (bytes(damaged), "the AOT package is damaged; make it again"),
        (None, f"cannot open the AOT package {tmp_path / 'bad'}"),
    ]:
        bad = tmp_path / "bad"
        bad.unlink(missing_ok=True)
        if content is not None:
            bad.write_bytes(content)
        said, errors, _ = life(made, f"file:{bad}")
        assert (said, errors) == (["refused"], [f"RestortPass: {expected}"])


LOAD = """
from restort.backends.tensorrt import plugin
from restort.errors import RestortError
before = plugin.is_registered(flavour)
said = []
try:
    plugin.load(flavour, said.append)
except RestortError as error:
    said.append(str(error))
plugin.is_registered(flavour) and plugin.load(flavour, said.append)
field = flavour.module.PluginField("plan", b"no package", flavour.module.PluginFieldType.CHAR)
creator = flavour.module.get_plugin_registry().get_creator("RestortPass", "2", "")
made = None
if creator is not None:
    collection = flavour.module.PluginFieldCollection([field])
    made = creator.create_plugin("pass", collection, flavour.module.TensorRTPhase.BUILD)
tell({"before": before, "after": creator is not None, "said": said, "made": made is not None})
"""


def test_it_is_loaded_from_python(made: Made) -> None:
    found = in_genuine(made.version, LOAD, env={"RESTORT_PLUGIN": str(made.plugin)})
    refused = found.pop("stderr")
    assert found == {"before": False, "after": True, "said": [], "made": False}
    assert refused == ["RestortPass: not an AOT package, or cut off: 10 bytes; give it as file:PATH"]


def test_it_is_compiled_with_older_headers_of_the_same_major_version(made: Made, tmp_path: Path) -> None:
    environment = {"RESTORT_CACHE": str(tmp_path), plugin.INCLUDE: str(made.headers)}
    found = in_genuine(made.version, LOAD, env=environment)
    compiling = f"compiling the plugin RestortPass for TensorRT {made.version} (lean), once"
    assert found["after"] and found["said"] == [compiling]
    (other,) = {*VERSIONS} - {made.version}
    found = in_genuine(other, LOAD, env=environment)
    assert not found["after"] and "to compile the plugin RestortPass: " in found["said"][0]
    found = in_genuine(other, LOAD, env={"RESTORT_PLUGIN": str(made.plugin)})
    majors = [version.split(".")[0] for version in (made.version, other)]
    assert not found["after"] and f"is for TensorRT {majors[0]}, and {majors[1]}." in found["said"][0]


def test_a_library_that_is_no_plugin(made: Made, tmp_path: Path) -> None:
    source, other = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text("")
    environment = {"RESTORT_PLUGIN": str(compiled(other, source, "-shared", "-fPIC"))}
    (said,) = in_genuine(made.version, LOAD, env=environment)["said"]
    assert "other.so is no plugin of this version of RestoRT; unset RESTORT_PLUGIN" in said
    major = made.version.split(".")[0]
    source.write_text(
        f'extern "C" int restortTensorrtMajor() {{ return {major}; }}\n'
        'extern "C" void setLoggerFinder(void*) {}\n'
        'extern "C" void* getCreators(int& count) { return count = 0, nullptr; }\n'
    )
    compiled(other, source, "-shared", "-fPIC")
    (said,) = in_genuine(made.version, LOAD, env=environment)["said"]
    assert said.startswith(f"TensorRT {made.version} (lean) does not register the plugin")
    assert "(it holds no RestortPass)" in said
