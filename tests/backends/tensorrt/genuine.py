"""The genuine libraries of TensorRT, each in a process of its own.

They are PyPI's lean runtimes: TensorRT's runtime and plugin registry, without builder and parser, which load without a
GPU. `make test` puts them beside the packages of .venv.

Two versions do not fit into one process, and a fault in one of them must end a test, not all tests.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(sys.prefix) / "tensorrt-lean"
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
