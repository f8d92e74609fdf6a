"""The plugin RestortPass as a shared library: named by the user, or compiled once from the sources in csrc/.

TensorRT loads it into its registry, once in a process, before an engine that holds the plugin is built or opened. It is
version "1" of the plugin for TensorRT 8.6, version "2" for 10 and 11 (csrc/restort_pass.cpp).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.backends.tensorrt.options import Notify
from restort.backends.tensorrt.sidecar import sha256
from restort.errors import RestortError, UsageError
from restort.utils.cache_dir import cache_root, distrusted
from restort.utils.files import write_bytes

if TYPE_CHECKING:
    from restort.backends.tensorrt.library import Flavour

LIBRARY = "RESTORT_PLUGIN"
"""The environment variable that names a compiled library of the plugin."""
INCLUDE = "RESTORT_TENSORRT_INCLUDE"
"""The environment variable that names the folder of TensorRT's headers."""

NAME = "RestortPass"
SUPPORTED = "8.6, 10 or 11"
SOURCES = Path(__file__).parent / "csrc"
OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
HEADER_FOLDERS = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/include")
_lock = threading.Lock()


def check_flavour(flavour: Flavour) -> None:
    """Raise UsageError where the plugin does not support `flavour`."""
    if flavour.name != "tensorrt":
        raise UsageError(
            f"{flavour.title} does not support plugins, which --kernels fused needs; use --flavour tensorrt with "
            f"TensorRT {SUPPORTED}, or --backend fused"
        )
    if not re.match(r"(8\.6|10|11)\.", flavour.version):
        raise UsageError(
            f"--kernels fused needs TensorRT {SUPPORTED}, and {flavour.version} is installed; leave --kernels out, or "
            "use --backend fused"
        )


def version_for(flavour: Flavour) -> str:
    """The version of the plugin for that TensorRT: '1' or '2'."""
    return "1" if flavour.version.startswith("8.") else "2"


def library() -> Path | None:
    """The library that RESTORT_PLUGIN names, or None. Raises UsageError where the file does not exist."""
    named = os.environ.get(LIBRARY)
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    if not path.is_file():
        raise UsageError(
            f"{LIBRARY} names a file that does not exist: {named}; name the plugin's library, or unset it"
        )
    return path


def digest() -> str:
    """The SHA-256 of the library that RESTORT_PLUGIN names, else of the sources."""
    named = library()
    if named is not None:
        return sha256(named)
    found = hashlib.sha256()
    for path in sources():
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def sources() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".hpp"))


def load(flavour: Flavour, notify: Notify = lambda line: None) -> None:
    """Register the plugin with TensorRT; compile it first if needed.

    Raises UsageError for a library or version that the plugin does not support, RestortError where it cannot be
    compiled or loaded.
    """
    check_flavour(flavour)
    with _lock:
        if is_registered(flavour):
            return
        path = library() or _compiled(flavour, notify)
        try:
            opened = ctypes.CDLL(str(path))
        except OSError as error:
            raise RestortError(
                f"the plugin {path} does not load ({' '.join(str(error).split())[:200]}); {_remedy()}"
            ) from None
        check_major(flavour, path, opened)
        with flavour.logger.capture() as captured:
            flavour.module.get_plugin_registry().load_library(str(path))
        if not is_registered(flavour):
            why = captured.error("loading it") if captured.errors() else f"it holds no {NAME}"
            raise RestortError(f"{flavour.title} does not register the plugin {path} ({why}); {_remedy()}")


def load_for(flavour: Flavour, about: dict[str, Any]) -> None:
    """Load the plugin if the engine of the sidecar `about` needs it. Raises RestortError where that fails."""
    if about.get("kernels") != "fused":
        return
    try:
        load(flavour)
    except RestortError as error:
        raise type(error)(f"this engine needs the plugin {NAME}: {error}") from None


def check_major(flavour: Flavour, path: Path, opened: Any) -> None:
    """Raise RestortError unless the library was compiled for the major version of this TensorRT.

    TensorRT would take one of another version, and crash when it logs an error.
    """
    if not hasattr(opened, "restortTensorrtMajor"):
        raise RestortError(f"{path} is no plugin of this version of RestoRT; {_remedy()}")
    if (major := opened.restortTensorrtMajor()) != int(flavour.version.split(".")[0]):
        raise RestortError(
            f"the plugin {path} is for TensorRT {major}, and {flavour.version} is installed; {_remedy()}"
        )


def is_registered(flavour: Flavour) -> bool:
    """Return whether the plugin is registered with TensorRT."""
    registry = flavour.module.get_plugin_registry()
    # 10 and 11 have get_creator, which finds IPluginV3; 8.6 has only the other, which 11 no longer has.
    find = registry.get_creator if hasattr(registry, "get_creator") else registry.get_plugin_creator
    return find(NAME, version_for(flavour), "") is not None


def _remedy() -> str:
    if os.environ.get(LIBRARY):
        return f"unset {LIBRARY} to compile it, or name one built for this TensorRT"
    return f"remove it to compile it again, or name another with {LIBRARY}"


def _compiled(flavour: Flavour, notify: Notify) -> Path:
    """Return the library in the cache folder; compile it if it is absent."""
    name = f"restort-pass-{digest()[:16]}-{platform.machine()}-tensorrt-{flavour.version}.so"
    target = cache_root() / "plugins" / name
    if target.is_file():
        if (why := distrusted(target)) is None:
            return target
        notify(f"the plugin {target} is not used: {why}")
    command = [*compiler(), *OPTIONS]
    folders = [tensorrt_headers(flavour), cuda_headers()]
    notify(f"compiling the plugin {NAME} for {flavour.title}, once")
    command += [f"-I{folder}" for folder in folders]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        command += ["-o", str(made), str(SOURCES / "restort_pass.cpp"), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RestortError(_failure(done.stderr, command[0]))
        try:
            write_bytes(target, made.read_bytes(), overwrite=True, private=True)
        except RestortError as error:
            raise RestortError(f"{error}; set RESTORT_CACHE, or {LIBRARY} to the plugin's library") from None
    return target


def _failure(output: str, compiler: str) -> str:
    """The message for a compiler that failed with `output`."""
    lines = [line for line in output.splitlines() if "error" in line or "cannot find" in line]
    lines = lines or output.splitlines()
    reason = " ".join(lines[0].split())[:240] if lines else "without a message"
    return f"{compiler} cannot compile the plugin {NAME} ({reason}); name a library built elsewhere with {LIBRARY}"


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, or g++. Raises RestortError where it is not installed."""
    named = os.environ.get("CXX", "")
    try:
        chosen = shlex.split(named) or ["g++"]
    except ValueError as error:
        raise UsageError(
            f"CXX is not a command: {named!r} ({str(error).lower()}); name the C++ compiler, such as g++"
        ) from None
    if shutil.which(chosen[0]) is None:
        raise RestortError(
            f"no compiler for the plugin {NAME}: {chosen[0]} is not installed; install it (apt-get install g++), name "
            f"another with CXX, or name a library built elsewhere with {LIBRARY}"
        )
    return chosen


def tensorrt_headers(flavour: Flavour) -> Path:
    """Find headers for the installed version of TensorRT. Raises RestortError where they are absent."""
    chosen = os.environ.get(INCLUDE)
    folders = (
        [chosen] if chosen else [*HEADER_FOLDERS, "/usr/local/tensorrt/include", "/opt/tensorrt/include"]
    )
    nvinfer = nvinfer_library()
    if not chosen and nvinfer is not None:
        folders.append(str(nvinfer.parent.parent / "include"))
    wanted = ".".join(flavour.version.split(".")[:2])
    others = []
    for folder in filter(lambda path: (path / "NvInferRuntime.h").is_file(), map(Path, folders)):
        found = header_version(folder)
        if fit(found, wanted):
            return folder
        others.append(f"{folder} holds {found or 'an unknown version'}")
    missing = "; ".join(others) or f"no NvInferRuntime.h in {chosen or 'the usual folders'}"
    raise RestortError(
        f"no headers of TensorRT {wanted} to compile the plugin {NAME}: {missing}; name their folder with {INCLUDE} "
        "(TensorRT's archive and libnvinfer-dev contain them), or name a library built elsewhere with "
        f"{LIBRARY}"
    )


def fit(headers: str, library: str) -> bool:
    """Return whether a plugin compiled with headers of a version, such as '10.14', runs in the library's, '10.16'.

    From TensorRT 10 on the interfaces of plugins are the same in all versions of a major number; a newer minor one may
    add to them.
    """
    if headers == library or not headers or library.startswith("8."):
        return headers == library
    (major, minor), (own_major, own_minor) = (
        [int(part) for part in text.split(".")] for text in (headers, library)
    )
    return major == own_major and minor <= own_minor


def header_version(folder: Path) -> str:
    """The version of the headers in a folder, such as '8.6'; '' where it is unknown."""
    try:
        text = (folder / "NvInferVersion.h").read_text("utf-8", "replace")
    except OSError:
        return ""
    # From 10.13 on NV_TENSORRT_MAJOR is defined as TRT_MAJOR_ENTERPRISE.
    numbers = [
        re.search(rf"#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE) (\d+)", text)
        for part in ("MAJOR", "MINOR")
    ]
    return ".".join(found[1] for found in numbers if found)


def cuda_headers() -> Path:
    """Find CUDA's headers, of a toolkit, Triton or a package. Raises RestortError where they are absent."""
    for folder in _cuda_folders():
        if all((folder / name).is_file() for name in ("cuda.h", "cuda_runtime_api.h")):
            return folder
    raise RestortError(
        f"no CUDA headers to compile the plugin {NAME}: no cuda.h with cuda_runtime_api.h in CUDA_HOME/include, "
        "/usr/local/cuda/include, or Triton; set CUDA_HOME, or name a library built elsewhere with "
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


def nvinfer_library() -> Path | None:
    """The libnvinfer that TensorRT's Python package has loaded, beside which an archive has its headers."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        path = Path(line.split(maxsplit=5)[-1])
        if re.fullmatch(r"libnvinfer\.so\.(8|10|11)[\d.]*", path.name):
            return path
    return None
