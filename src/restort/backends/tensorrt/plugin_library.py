"""The plugin RestortPass as a shared library: named by the user, or compiled once from the sources in plugin/.

It is loaded after TensorRT, once in a process, before an engine that holds the plugin is built or opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from restort.backends.tensorrt.sidecar import sha256
from restort.errors import RestortError, UsageError
from restort.utils.cache_dir import cache_root

if TYPE_CHECKING:
    from restort.backends.tensorrt.flavour import Flavour

LIBRARY = "RESTORT_PLUGIN"
"""Names the library of the plugin, so that none is compiled."""
INCLUDE = "RESTORT_TENSORRT_INCLUDE"
"""Names the folder of TensorRT's headers, where they are at no usual place."""

NAME, VERSION = "RestortPass", "1"
TESTED = "8.6"
FOLDER = Path(__file__).parent / "plugin"
OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
USUAL = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/include")
_lock = threading.Lock()
_kept: list[ctypes.CDLL] = []


def check_flavour(flavour: Flavour) -> None:
    """UsageError where `flavour` is none that the plugin is known to work with."""
    if flavour.name != "tensorrt":
        raise UsageError(
            f"{flavour.title} has no plugins, so --kernels fused needs TensorRT {TESTED}; use --flavour tensorrt, or "
            "--backend fused"
        )
    if not flavour.version.startswith(f"{TESTED}."):
        raise UsageError(
            f"--kernels fused is for TensorRT {TESTED}, and {flavour.version} is installed; leave --kernels out, or "
            "use --backend fused"
        )


def library() -> Path | None:
    """The library that the environment names. Raises UsageError where there is no such file."""
    named = os.environ.get(LIBRARY)
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    if not path.is_file():
        raise UsageError(
            f"{LIBRARY} is {named}, where there is no file; name the plugin's library, or unset it"
        )
    return path


def digest() -> str:
    """SHA-256 of the library that is named, else of the sources."""
    named = library()
    if named is not None:
        return sha256(named)
    found = hashlib.sha256()
    for path in sources():
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def sources() -> list[Path]:
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".cpp", ".hpp"))


def load(flavour: Flavour, say: Callable[[str], object] = lambda line: None) -> None:
    """Makes the plugin known to TensorRT, compiled first if need be.

    Raises UsageError for another library or version than the plugin is for, RestortError where it cannot be compiled
    or loaded.
    """
    check_flavour(flavour)
    with _lock:
        if known(flavour):
            return
        path = library() or _compiled(flavour, say)
        try:
            _kept.append(ctypes.CDLL(str(path)))
        except OSError as error:
            raise RestortError(
                f"the plugin {path} does not load ({' '.join(str(error).split())[:200]}); {_remedy()}"
            ) from None
        if not known(flavour):
            raise RestortError(
                f"the plugin {path} was loaded, but {flavour.title} does not know {NAME}: it was linked to another "
                f"libnvinfer; {_remedy()}"
            )


def known(flavour: Flavour) -> bool:
    """Whether TensorRT has the plugin already."""
    return flavour.module.get_plugin_registry().get_plugin_creator(NAME, VERSION, "") is not None


def _remedy() -> str:
    if os.environ.get(LIBRARY):
        return f"unset {LIBRARY} to have it compiled, or name one made for this TensorRT"
    return f"remove it to have it compiled again, or name another with {LIBRARY}"


def _compiled(flavour: Flavour, say: Callable[[str], object]) -> Path:
    """The library in the cache folder, made if it is not there."""
    name = f"restort-pass-{digest()[:16]}-{platform.machine()}-tensorrt-{flavour.version}.so"
    target = cache_root() / "plugins" / name
    if target.is_file():
        return target
    command = [*compiler(), *OPTIONS]
    nvinfer = nvinfer_library()
    folders = [tensorrt_headers(flavour, nvinfer), cuda_headers()]
    say(f"compiling the plugin {NAME} for {flavour.title}, once")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    command += [f"-I{folder}" for folder in folders]
    command += ["-o", str(temporary), str(FOLDER / "restort_pass.cpp")]
    command += ["-Wl,--no-as-needed", f"-L{nvinfer.parent}", f"-l:{nvinfer.name}", "-Wl,--as-needed", "-ldl"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RestortError(_failed(done.stderr, command[0]))
        temporary.replace(target)
    except OSError as error:
        raise RestortError(
            f"cannot write {target} ({error.strerror or error}); set RESTORT_CACHE to another folder, or {LIBRARY} to "
            "the plugin's library"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def _failed(said: str, name: str) -> str:
    lines = [
        line for line in said.splitlines() if "error" in line or "cannot find" in line
    ] or said.splitlines()
    reason = " ".join(lines[0].split())[:240] if lines else "it says nothing"
    return (
        f"{name} could not compile the plugin {NAME} ({reason}); name a library made elsewhere with {LIBRARY}"
    )


def compiler() -> list[str]:
    """The C++ compiler: CXX, or g++. Raises RestortError where there is none."""
    named = os.environ.get("CXX", "")
    try:
        chosen = shlex.split(named) or ["g++"]
    except ValueError as error:
        raise UsageError(
            f"CXX is {named!r}, which is no command ({str(error).lower()}); name the C++ compiler, such as g++"
        ) from None
    if shutil.which(chosen[0]) is None:
        raise RestortError(
            f"the plugin {NAME} has to be compiled, and there is no {chosen[0]} here; install one (apt-get install "
            f"g++), name another with CXX, or name a library made elsewhere with {LIBRARY}"
        )
    return chosen


def tensorrt_headers(flavour: Flavour, nvinfer: Path) -> Path:
    """The folder of TensorRT's headers. Raises RestortError without those of the version that is installed."""
    chosen = os.environ.get(INCLUDE)
    beside = nvinfer.parent.parent / "include"
    folders = (
        [chosen] if chosen else [*USUAL, "/usr/local/tensorrt/include", "/opt/tensorrt/include", str(beside)]
    )
    wanted = ".".join(flavour.version.split(".")[:2])
    others = []
    for folder in filter(lambda path: (path / "NvInferRuntime.h").is_file(), map(Path, folders)):
        found = header_version(folder)
        if found == wanted:
            return folder
        others.append(f"{folder} has those of {found or 'an unknown version'}")
    missing = "; ".join(others) or f"no NvInferRuntime.h lies in {chosen or 'the usual places'}"
    raise RestortError(
        f"the plugin {NAME} has to be compiled with the headers of TensorRT {wanted}, and {missing}; name their folder "
        f"with {INCLUDE} (they come with TensorRT's archive and with libnvinfer-dev), or name a library made elsewhere "
        f"with {LIBRARY}"
    )


def header_version(folder: Path) -> str:
    """'8.6' of the headers in a folder, '' where they do not say it."""
    try:
        text = (folder / "NvInferVersion.h").read_text("utf-8", "replace")
    except OSError:
        return ""
    numbers = [re.search(rf"#define NV_TENSORRT_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    return ".".join(found[1] for found in numbers if found)


def cuda_headers() -> Path:
    """The folder of CUDA's headers: of a toolkit, Triton, or a package. Raises RestortError where there is none."""
    for folder in _cuda_folders():
        if all((folder / name).is_file() for name in ("cuda.h", "cuda_runtime_api.h")):
            return folder
    raise RestortError(
        f"the plugin {NAME} has to be compiled with CUDA's headers, and no cuda.h with cuda_runtime_api.h lies in "
        "CUDA_HOME/include, /usr/local/cuda/include, or Triton; set CUDA_HOME, or name a library made elsewhere with "
        f"{LIBRARY}"
    )


def _cuda_folders() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "include"
    yield Path("/usr/local/cuda/include")
    triton = importlib.util.find_spec("triton")
    for place in triton.submodule_search_locations or () if triton else ():
        yield Path(place) / "backends" / "nvidia" / "include"
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    yield from sorted(packages.glob("c*/include"))  # cuda_runtime, or cu13 with all of them


def nvinfer_library() -> Path:
    """Where TensorRT's Python package has loaded its library from. Raises RestortError where that is not told."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        path = Path(line.split(maxsplit=5)[-1])
        if re.fullmatch(r"libnvinfer\.so\.8[\d.]*", path.name):
            return path
    raise RestortError(
        f"libnvinfer.so.8 is not found among the libraries of this process ({sys.platform}), so the plugin {NAME} "
        f"cannot be linked to it; name a library made elsewhere with {LIBRARY}"
    )
