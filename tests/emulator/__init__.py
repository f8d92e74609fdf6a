"""Runs a Launch of a CUDA kernel on the CPU, thread by thread: emulator.h says what it checks on the way."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
POINTERS = {"*fp16": "u16", "*bf16": "u16", "*fp32": "float", "*i32": "int"}


@functools.cache
def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ here to compile the emulator with")
    return found


def _library(launch: Any) -> Any:
    kernel = launch.kernel
    types = launch.signature()
    # Without const: that is added by the call where the kernel only reads.
    pointers = [f"({POINTERS[types[name]]}*)t[{i}]" for i, name in enumerate(launch.tensors)]
    arguments = ", ".join([*pointers, *(f"s[{i}]" for i in range(len(launch.sizes)))])
    source = kernel.source(launch.constants)
    text = (
        "#define EMULATE\n"
        + source.replace("#ifndef EMULATE", f'#include "{HERE}/emulator.h"\n#ifndef EMULATE', 1)
        + f"\n#define CALL(t, s) {kernel.__name__}({arguments})\n"
        + f'#include "{HERE}/launcher.h"\n'
    )
    parts = [text, *(path.read_text() for path in sorted(HERE.glob("*.h")))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"restort-emulator-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        file = folder / f"{key}.{os.getpid()}.cpp"
        file.write_text(text)
        made = file.with_suffix(".so")
        command = [
            _compiler(),
            "-O1",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-w",
            "-fno-gnu-unique",
            "-fvisibility=hidden",
            "-o",
            str(made),
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
        file.unlink()
        made.replace(library)
    return ctypes.CDLL(str(library))


def emulate(launch: Any) -> None:
    """Run it on CPU tensors, in place; AssertionError with what was wrong (a race, memory out of bounds ...)."""
    library = _library(launch)
    tensors = list(launch.tensors.values())
    assert all(tensor.is_contiguous() for tensor in tensors)
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    lengths = (ctypes.c_long * len(tensors))(*(t.numel() * t.element_size() for t in tensors))
    sizes = (ctypes.c_int * len(launch.sizes))(*launch.sizes.values())
    grid = (ctypes.c_int * 3)(*(*launch.grid, 1, 1)[:3])
    library.emulate.restype = ctypes.c_char_p
    shared = ctypes.c_long(launch.constants["SHARED"])
    trouble = library.emulate(pointers, lengths, len(tensors), sizes, grid, shared)
    assert not trouble, trouble.decode()
