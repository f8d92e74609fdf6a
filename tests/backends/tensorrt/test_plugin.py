"""The library of the plugin RestortPass: named, or compiled once (by a fake compiler), and loaded after TensorRT."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restort.backends.tensorrt import plugin
from restort.errors import RestortError, UsageError
from tests.fakes.fake_tensorrt import Logger

COMPILER = """#!/bin/sh
echo "$@" >> "$COMPILER_LOG"
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo compiled > "$2"; fi
    shift
done
"""


class Machine:
    """A TensorRT 8.6 with its headers, CUDA's, and a compiler; `loaded` are the libraries that were opened."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.loaded: list[str] = []
        self.registers = True
        self.log = folder / "log"
        self.include, self.cuda = folder / "include", folder / "cuda" / "include"
        self.headers("8", "6")
        self.cuda.mkdir(parents=True)
        for name in ("cuda.h", "cuda_runtime_api.h"):
            (self.cuda / name).write_text("")
        self.compiler = folder / "c++"
        self.compiler.write_text(COMPILER)
        self.compiler.chmod(0o755)
        self.major = 8
        self.registry = SimpleNamespace(get_plugin_creator=self.creator, load_library=self.register)
        self.flavour: Any = SimpleNamespace(
            name="tensorrt",
            version="8.6.0",
            title="TensorRT 8.6.0",
            module=SimpleNamespace(get_plugin_registry=lambda: self.registry),
            logger=Logger(),
        )
        for name, value in {
            "RESTORT_CACHE": folder / "cache",
            "CXX": self.compiler,
            "COMPILER_LOG": self.log,
            "CUDA_HOME": self.cuda.parent,
            plugin.INCLUDE: self.include,
        }.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv(plugin.LIBRARY, raising=False)
        monkeypatch.setattr(plugin, "nvinfer_library", lambda: folder / "lib" / "libnvinfer.so.8")
        monkeypatch.setattr(plugin, "HEADER_FOLDERS", ())
        monkeypatch.setattr(plugin, "ctypes", SimpleNamespace(CDLL=self.open))

    def headers(self, major: str, minor: str) -> None:
        self.include.mkdir(exist_ok=True)
        (self.include / "NvInferRuntime.h").write_text("")
        text = f"#define NV_TENSORRT_MAJOR {major} //!< major\n#define NV_TENSORRT_MINOR {minor}\n"
        (self.include / "NvInferVersion.h").write_text(text)

    def creator(self, name: str, version: str, namespace: str) -> Any:
        expected = "1" if self.flavour.version.startswith("8") else "2"
        assert (name, version, namespace) == ("RestortPass", expected, "")
        return object() if self.loaded else None

    def open(self, path: str) -> Any:
        if Path(path).read_text() == "no library":
            raise OSError(f"{path}: invalid ELF header")
        made = SimpleNamespace(restortTensorrtMajor=lambda: self.major)
        return SimpleNamespace() if Path(path).read_text() == "another library" else made

    def register(self, path: str) -> Any:
        if not self.registers:
            self.flavour.logger.captured.lines.append("a creator of that name exists")
            return None
        self.loaded.append(path)
        return object()

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_it_is_compiled_once(machine: Machine) -> None:
    said: list[str] = []
    plugin.load(machine.flavour, said.append)
    plugin.load(machine.flavour, said.append)  # TensorRT knows it already
    assert len(machine.loaded) == 1 and said == ["compiling the plugin RestortPass for TensorRT 8.6.0, once"]
    (call,) = machine.calls()
    for part in (
        "-std=c++17 -O2 -fPIC -shared",
        f"-I{machine.include} -I{machine.cuda}",
        "restort_pass.cpp -ldl",
    ):
        assert part in call
    (made,) = (machine.folder / "cache" / "plugins").iterdir()
    assert machine.loaded == [str(made)] and made.name.endswith(f"-{platform.machine()}-tensorrt-8.6.0.so")
    machine.loaded.clear()  # another process
    plugin.load(machine.flavour)
    assert machine.loaded == [str(made)] and len(machine.calls()) == 1


def test_its_sources_are_shipped() -> None:
    names = [path.name for path in plugin.sources()]
    assert names == [
        "aot_gpu.hpp",
        "aot_package.hpp",
        "pass.hpp",
        "pass_v2.hpp",
        "pass_v3.hpp",
        "restort_pass.cpp",
    ]


def test_a_library_that_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    named = machine.folder / "mine.so"
    before = plugin.digest()
    monkeypatch.setenv(plugin.LIBRARY, str(named))
    with pytest.raises(UsageError, match=r"RESTORT_PLUGIN names a file that does not exist: .*mine\.so"):
        plugin.load(machine.flavour)
    named.write_text("mine")
    assert plugin.digest() != before
    plugin.load(machine.flavour)
    assert machine.loaded == [str(named)] and not machine.calls()
    machine.loaded.clear()
    named.write_text("another library")
    with pytest.raises(
        RestortError, match=r"mine\.so is no plugin of this version of RestoRT; unset RESTORT"
    ):
        plugin.load(machine.flavour)
    named.write_text("no library")
    with pytest.raises(
        RestortError, match=r"mine\.so does not load .*invalid ELF header.*unset RESTORT_PLUGIN"
    ):
        plugin.load(machine.flavour)
    machine.registers = False
    named.write_text("a second one")
    with pytest.raises(
        RestortError, match=r"8\.6\.0 does not register the plugin .*mine\.so \(.*a creator of that name"
    ):
        plugin.load(machine.flavour)
    machine.major = 10
    with pytest.raises(RestortError, match=r"mine\.so is for TensorRT 10, and 8\.6\.0 is installed; unset"):
        plugin.load(machine.flavour)


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_newer_versions(machine: Machine, version: str) -> None:
    machine.flavour.version = version
    machine.major = int(version.split(".")[0])
    machine.registry = SimpleNamespace(get_creator=machine.creator, load_library=machine.register)
    header = machine.include / "NvInferVersion.h"
    header.write_text(
        f"#define TRT_MAJOR_ENTERPRISE {machine.major}\n#define TRT_MINOR_ENTERPRISE 3\n"
        "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.\n"
    )
    plugin.load(machine.flavour)  # by headers of an older minor version
    assert len(machine.loaded) == 1


def test_which_headers_fit() -> None:
    fitting = [("8.6", "8.6"), ("10.14", "10.16"), ("10.16", "10.16"), ("11.1", "11.4")]
    assert all(plugin.fit(*pair) for pair in fitting)
    others = [("8.5", "8.6"), ("10.16", "10.3"), ("10.14", "11.4"), ("11.1", "10.16"), ("", "10.16")]
    assert not any(plugin.fit(*pair) for pair in others)


def test_what_is_missing_is_one_sentence(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str) -> None:
        with pytest.raises(RestortError, match=words) as error:
            plugin.load(machine.flavour)
        assert "\n" not in str(error.value) and "RESTORT_PLUGIN" in str(error.value)
        assert not machine.loaded and not list((machine.folder / "cache").rglob("*.so*"))

    with monkeypatch.context() as patched:
        patched.setenv("CXX", "no-such-compiler")
        refused(r"no-such-compiler is not installed; install it \(apt-get install g\+\+\)")
        patched.setenv("CXX", "g++ 'x")
        with pytest.raises(UsageError, match=r"CXX is not a command: .* .no closing quotation.; name the"):
            plugin.load(machine.flavour)
    machine.headers("10", "3")
    refused(r"no headers of TensorRT 8\.6 .*include holds 10\.3; .*RESTORT_TENSORRT_INCLUDE")
    machine.headers("8", "6")
    with monkeypatch.context() as patched:
        patched.setenv(plugin.INCLUDE, str(machine.folder / "nothing"))
        refused(r"no NvInferRuntime\.h in .*nothing; name their folder")
    with monkeypatch.context() as patched:
        patched.setattr(plugin, "_cuda_folders", lambda: iter([machine.folder]))
        refused(r"no cuda\.h .*set CUDA_HOME")
    machine.compiler.write_text("#!/bin/sh\necho 'a.hpp:1: error: no such thing' >&2\nexit 1\n")
    refused(r"cannot compile the plugin RestortPass \(a\.hpp:1: error: no such thing\)")
    machine.compiler.write_text("#!/bin/sh\nexit 1\n")
    refused("without a message")


def test_headers_are_found_beside_the_library(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugin.INCLUDE)
    plugin.load(machine.flavour)
    assert f"-I{machine.include} " in machine.calls()[0]


def test_a_cache_that_cannot_be_written(machine: Machine) -> None:
    (machine.folder / "cache").write_text("no folder")
    with pytest.raises(RestortError, match=r"cannot write .*set RESTORT_CACHE"):
        plugin.load(machine.flavour)


def test_where_tensorrt_was_loaded_from(tmp_path: Path) -> None:
    assert plugin.nvinfer_library() is None
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler here")
    library, source = tmp_path / "libnvinfer.so.10", tmp_path / "none.c"
    source.write_text("")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    code = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1])\n"
        "from restort.backends.tensorrt.plugin import nvinfer_library as found; print(found())"
    )
    command = [sys.executable, "-c", code, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == str(library), done.stderr
    assert ctypes.sizeof(ctypes.c_void_p) == 8
