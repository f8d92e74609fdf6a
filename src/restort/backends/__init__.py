"""How a network runs: one small Runner protocol, and the libraries behind it.

`create` makes a Runner of weights; `status` tells what is installed. Libraries are imported when one is made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from restort.backends.base import PRECISIONS, BackendStatus, Runner, one_line
from restort.errors import RestortError, UsageError

if TYPE_CHECKING:
    from restort.models.checkpoint import Weights

__all__ = ["BACKENDS", "BackendStatus", "Runner", "create", "installed", "status"]


@dataclass(frozen=True)
class Backend:
    """Where a backend lives and how a user gets it."""

    module: str
    runner: str
    precisions: tuple[str, ...]
    remedy: str


_TABLE = {
    "onnxruntime": Backend("onnxruntime_cpu", "OnnxRuntimeRunner", ("fp32",), "pip install onnxruntime"),
    "openvino": Backend(
        "openvino_cpu", "OpenVinoRunner", ("fp32", "bf16"), "pip install 'restort[openvino]'"
    ),
    "torch": Backend("torch_cpu", "TorchRunner", ("fp32", "bf16"), "pip install 'restort[torch]'"),
}
BACKENDS = tuple(_TABLE)


def installed(name: str) -> bool:
    """Whether the library of backend `name` can be found; it is not imported."""
    return importlib.util.find_spec(name) is not None


def status() -> list[BackendStatus]:
    """Every backend, in the order of BACKENDS. Imports the libraries to see whether they load."""
    return [_status(name, backend) for name, backend in _TABLE.items()]


def _status(name: str, backend: Backend) -> BackendStatus:
    if not installed(name):
        return BackendStatus(name, False, False, None, (), f"{name} is not installed", backend.remedy)
    version = library_version(name)
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = f"{name} is installed but does not load ({one_line(error)})"
        return BackendStatus(name, True, False, version, (), reason, f"{backend.remedy} --force-reinstall")
    return BackendStatus(name, True, True, version, backend.precisions, None, None)


def library_version(name: str) -> str | None:
    """The installed version of a library, None where it is not known."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def create(
    weights: Weights,
    backend: str = "auto",
    precision: str = "auto",
    *,
    threads: int | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Runner:
    """A Runner of `weights`.

    backend     'onnxruntime', 'openvino', 'torch', or 'auto': the fastest measured among the installed ones
                (the measurement, a few seconds on a small array, is kept in the cache folder).
    precision   'fp32', 'bf16', or 'auto': bf16 where the processor has it, the backend offers it, it is faster
                and its result on a small array is near that of fp32 (restort.backends.select.NEAR_DB); else fp32.
    threads     default: the physical cores that this process may use.
    say         receives one sentence when something was chosen automatically.

    Raises UsageError for an unknown backend or precision, a precision the backend has not, or threads below 1;
    RestortError for a backend that is not installed or does not load, with the way to install it.
    """
    if backend != "auto" and backend not in _TABLE:
        raise UsageError(
            f"there is no backend {backend!r}; choose auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        )
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"there is no precision {precision!r}; choose auto, fp32 or bf16")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if backend != "auto" and precision not in ("auto", *_TABLE[backend].precisions):
        raise UsageError(
            f"the backend {backend} has no {precision}; use --backend openvino, or --precision fp32"
        )
    if backend != "auto" and not installed(backend):
        raise RestortError(f"the backend {backend} is not installed; get it with: {_TABLE[backend].remedy}")
    from restort.backends.select import choose

    return choose(weights, _candidates(backend, precision), threads=threads, say=say, make=make)


def _candidates(backend: str, precision: str) -> list[tuple[str, str]]:
    """(backend, precision) pairs to choose from; RestortError where nothing is installed."""
    names = [backend] if backend != "auto" else [name for name in BACKENDS if installed(name)]
    if not names:
        raise RestortError(f"no backend is installed; get one with: {_TABLE['onnxruntime'].remedy}")
    wanted = PRECISIONS if precision == "auto" else (precision,)
    pairs = [(name, p) for name in names for p in wanted if p in _TABLE[name].precisions]
    if not pairs:
        raise RestortError(f"no installed backend has {precision}; get one with: {_TABLE['openvino'].remedy}")
    return pairs


def make(name: str, precision: str, weights: Weights, threads: int | None) -> Runner:
    """The Runner of one backend, without any choice; RestortError where its library does not load."""
    backend = _TABLE[name]
    try:
        importlib.import_module(name)
        module: Any = importlib.import_module(f"restort.backends.{backend.module}")
    except ImportError as error:
        raise RestortError(
            f"the backend {name} does not load ({one_line(error)}); "
            f"install it again with: {backend.remedy} --force-reinstall"
        ) from None
    runner: Runner = getattr(module, backend.runner)(weights, precision, threads)
    return runner
