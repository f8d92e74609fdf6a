"""The genuine libraries of TensorRT, each in a process of its own.

They are PyPI's lean runtimes: TensorRT's runtime and plugin registry, without builder and parser, which load without a
GPU. `make test` puts them beside the packages of .venv.

Two versions do not fit into one process, and a fault in one of them must end a test, not all tests.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(sys.prefix) / "tensorrt-lean"
HEADERS = Path(sys.prefix) / "tensorrt-headers"
VERSIONS = ("8.6.0", "10.16.1.11", "11.4.0.106")


def in_genuine(version: str, code: str, *arguments: object, env: dict[str, str] | None = None) -> Any:
    """Run `code` in a process with that version as `flavour`; return what it gives to `tell`, after a clean exit.

    Lines on stderr are added as "stderr" where it tells a dict. Skips where the version is not installed.
    """
    folder = FOLDER / version
    if not folder.is_dir():
        pytest.skip(f"the lean runtime of TensorRT {version} is not in {folder}; `make test` puts it there")
    start = (
        "import sys; from tests.backends.tensorrt.genuine import load, tell; flavour = load(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", start + code, str(folder), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, **(env or {}), "PYTHONPATH": paths}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, (run.returncode, run.stdout[-1000:], run.stderr[-2000:])
    found = json.loads(run.stdout.splitlines()[-1])
    return found | {"stderr": run.stderr.splitlines()} if isinstance(found, dict) else found


def load(folder: str) -> Any:
    """The Flavour of the lean runtime in a folder."""
    from restort.backends.tensorrt import library

    sys.path.insert(0, folder)
    one_wheel = (
        Path(folder) / "tensorrt_lean"
    ).is_dir()  # 8.6; from 10 on there are two, one with the bindings
    module = importlib.import_module("tensorrt_lean" if one_wheel else "tensorrt_lean_bindings")
    return library.adapt("tensorrt", module)


def tell(found: Any) -> None:
    print(json.dumps(found))


def library_of(version: str) -> Path:
    """Its libnvinfer. Skips where it is not installed."""
    found = sorted((FOLDER / version).glob("tensorrt_lean*/libnvinfer_lean.so.*"))
    if not found:
        pytest.skip(f"the lean runtime of TensorRT {version} is not in {FOLDER}; `make test` puts it there")
    return found[0]


def headers(version: str, target: Path) -> Path:
    """Headers for a plugin in that TensorRT, 10 or 11, in the folder `target`. Skips where they are not installed.

    Those of 11 are the installed ones of 10.14 with what 11 changed of a plugin's interfaces: the deprecated functions
    of the registry are gone, and ILoggerFinder has a version.
    """
    folder = HEADERS / "kernel_lens" / "include" / "tensorrt"
    if not (folder / "NvInferRuntime.h").is_file():
        pytest.skip(f"the headers of TensorRT are not in {folder}; `make test` puts them there")
    if version.startswith("10."):
        return folder
    finder = """class ILoggerFinder : public IVersionedInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
private:"""
    for name, pattern, new, times in (
        ("NvInferVersion.h", r"(TRT_MAJOR_ENTERPRISE) 10\b", r"\1 11", 1),
        ("NvInferVersion.h", r"(TRT_MINOR_ENTERPRISE) 14\b", r"\1 0", 1),
        ("NvInferRuntimeCommon.h", r"TRT_DEPRECATED virtual [^;]*;", "", 4),
        ("NvInferRuntime.h", r"class ILoggerFinder\s*\{", finder, 1),
    ):
        if not target.exists():
            shutil.copytree(folder, target)
        text, found = re.subn(pattern, new, (target / name).read_text())
        assert found == times, (name, pattern, found)
        (target / name).write_text(text)
    return target


def compiled(target: Path, source: Path, *options: object, headers: Path | None = None) -> Path:
    """Compile a file of C++ with the plugin's sources and CUDA's headers; return `target`. Skips without a compiler."""
    from restort.backends.tensorrt import plugin
    from restort.errors import RestortError

    try:
        start = [*plugin.compiler(), "-std=c++17", "-O1", "-w", f"-isystem{plugin.cuda_headers()}"]
    except RestortError as error:
        pytest.skip(str(error))
    folders = [f"-I{plugin.SOURCES}"] + ([f"-isystem{headers}"] if headers else [])
    command = [*start, *folders, *map(str, options)]
    done = subprocess.run([*command, "-o", str(target), str(source), "-ldl"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return target
