"""A try reads a damaged or hostile file of weights, made from the files in FOLDER/seeds."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.weights.checkpoint import Weights, load_weights
from tests.attack import children
from tests.attack.mutations import mutated

NAMES = (
    b"os system",
    b"posix system",
    b"builtins exec",
    b"builtins eval",
    b"builtins getattr",
    b"builtins __import__",
    b"subprocess Popen",
    b"torch._utils _rebuild_tensor_v2",
    b"torch FloatStorage",
    b"collections OrderedDict",
    b"numpy.core.multiarray _reconstruct",
    b"numpy ndarray",
    b"argparse Namespace",
)
"""Functions that would do harm, and those that checkpoints name."""
ACTIONS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.chmod",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
"""Events of sys.addaudithook that reading weights never causes."""

_done: list[str] = []
_seeds: dict[str, bytes] = {}


def attempt(seed: int, number: int, folder: Path) -> str | None:
    if not _seeds:
        for path in (folder / "seeds").iterdir():
            _seeds[path.name] = path.read_bytes()
            load_weights(path)  # lazy imports are over before the watch begins
        sys.addaudithook(_watch)
    random = np.random.default_rng((seed, number))
    path = folder / "a.pth"
    path.write_bytes(_content(random))
    _done.clear()
    try:
        weights = load_weights(path)
        wrong = None if isinstance(weights, Weights) else f"load_weights gave {type(weights).__name__}"
    except RestortError as error:
        wrong = None if "\n" not in str(error) and path.name in str(error) else f"no sentence: {str(error)!r}"
    except Exception as error:
        wrong = f"{error!r}"
    return f"it was made to {', '.join(_done)}" if _done else wrong


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ACTIONS or (
        event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    ):
        _done.append(event)


def _content(random: np.random.Generator) -> bytes:
    """A damaged seed; for a third of the tries a sound zip file around a damaged or made-up pickle."""
    if random.random() < 0.66:
        return mutated(random, _seeds)
    with zipfile.ZipFile(io.BytesIO(_seeds["zip.pth"])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    entries[name] = _program(random) if random.random() < 0.5 else mutated(random, {"pickle": entries[name]})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return buffer.getvalue()


def _program(random: np.random.Generator) -> bytes:
    """A pickle of up to 40 instructions, among them calls of functions that would do harm."""
    touch = b"X\x0d\0\0\0touch harmful"
    pieces: list[bytes] = [b"\x80\x02"]
    for _ in range(int(random.integers(1, 41))):
        module, name = NAMES[random.integers(len(NAMES))].split(b" ")
        match random.integers(8):
            case 0:
                pieces.append(b"c" + module + b"\n" + name + b"\n" + touch + b"\x85R")
            case 1:
                pieces.append(b"c" + module + b"\n" + name + b"\n")
            case 2:
                pieces.append(b"(" + touch + b"i" + module + b"\n" + name + b"\n")
            case 3:
                pieces.append(touch)
            case 4:
                pieces.append(pickle.dumps({"params": [1, 2.5, None, b"x", ("a", 3)]}, protocol=2)[2:-1])
            case 5:
                pieces.append(
                    (b"R", b"b", b"o", b"\x81", b"Q", b"u", b"s", b"e", b"a", b"t")[random.integers(10)]
                )
            case 6:
                pieces.append((b"(", b"}", b"]", b")", b"N", b"0", b"2", b"1", b"\x94")[random.integers(9)])
            case _:
                pieces.append(random.bytes(int(random.integers(1, 6))))
    return b"".join(pieces) + b"."


if __name__ == "__main__":
    children.main(attempt)
