"""How a network runs: one small Runner protocol, and the libraries behind it.

`create` makes a Runner of weights; `status` tells what is installed. Libraries are imported when one is made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from restort.errors import RestortError, UsageError
from restort.runner import PRECISIONS, BackendStatus, Runner, one_line

if TYPE_CHECKING:
    from restort.utils.gpu import Unavailable
    from restort.weights.checkpoint import Weights

__all__ = [
    "BACKENDS",
    "BackendStatus",
    "Runner",
    "check_available",
    "check_usable",
    "create",
    "installed",
    "status",
]

_log = logging.getLogger("restort")


@dataclass(frozen=True)
class Backend:
    """Where a backend lives and how a user gets it.

    library     what it imports, if that has another name than the backend; of several names the first installed.
    device      'gpu' where its library alone is not enough: `check`, MODULE:FUNCTION, tells what else is in the way,
                quickly and without loading the library, and `deep_check` the same after loading it.
    first       `auto` takes it before any other, unmeasured, where it can be used,
    ready       and, if this is given, where MODULE:FUNCTION(weights, precision) is true.
    """

    module: str
    runner: str
    precisions: tuple[str, ...]
    remedy: str
    library: str = ""
    device: str = "cpu"
    check: str = ""
    deep_check: str = ""
    first: bool = False
    ready: str = ""


_TABLE = {
    "onnxruntime": Backend("onnxruntime_cpu", "OnnxRuntimeRunner", ("fp32",), "pip install onnxruntime"),
    "openvino": Backend(
        "openvino_cpu", "OpenVinoRunner", ("fp32", "bf16"), "pip install 'restort[openvino]'"
    ),
    "torch": Backend("torch_cpu", "TorchRunner", ("fp32", "bf16"), "pip install 'restort[torch]'"),
    "fused": Backend(
        "fused.runner",
        "FusedRunner",
        ("fp16", "bf16", "fp32"),
        "pip install 'restort[fused]'",
        library="torch",
        device="gpu",
        check="restort.utils.gpu:check_available",
        deep_check="restort.utils.gpu:check_usable",
        first=True,
    ),
    "tensorrt": Backend(
        "tensorrt.runner",
        "TensorrtRunner",
        ("fp16", "bf16", "fp32", "tf32", "mixed"),
        "pip install 'restort[rtx]' (or 'restort[tensorrt]')",
        library="tensorrt_rtx tensorrt",
        device="gpu",
        check="restort.backends.tensorrt.availability:check_available",
        deep_check="restort.backends.tensorrt.availability:check_usable",
        first=True,
        ready="restort.backends.tensorrt.availability:is_ready",
    ),
}
BACKENDS = tuple(_TABLE)


def installed(name: str) -> bool:
    """Whether the library of backend `name` can be found; it is not imported."""
    return importlib.util.find_spec(_library(name)) is not None


def check_available(name: str) -> Unavailable | None:
    """Return what is missing to use an installed backend here; None where nothing is known to be.

    Nothing large is imported, so for backends on the processor the answer is always None.
    """
    return _checked(_TABLE[name].check)


def check_usable(name: str) -> Unavailable | None:
    """Like `check_available`, and import the backend's library to see whether it works."""
    return _checked(_TABLE[name].deep_check)


def _checked(place: str) -> Unavailable | None:
    found: Unavailable | None = _function(place)() if place else None
    return found


def _function(place: str) -> Any:
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


def _library(name: str) -> str:
    names = _TABLE[name].library.split() if name in _TABLE else []
    return next((n for n in names if importlib.util.find_spec(n) is not None), names[0] if names else name)


def status() -> list[BackendStatus]:
    """Every backend, in the order of BACKENDS. Imports the libraries to see whether they load."""
    return [_status(name, backend) for name, backend in _TABLE.items()]


def _status(name: str, backend: Backend) -> BackendStatus:
    if not installed(name):
        reason = f"{_library(name)} is not installed"
        return BackendStatus(name, False, False, None, (), reason, backend.remedy)
    library = _library(name)
    version = library_version(library)
    shallow = check_available(name)
    if shallow is not None:
        return BackendStatus(name, True, False, version, (), shallow.reason, shallow.remedy)
    try:
        importlib.import_module(library)
    except Exception as error:
        reason = f"{library} is installed but does not load ({one_line(error)})"
        return BackendStatus(name, True, False, version, (), reason, f"{backend.remedy} --force-reinstall")
    found = check_usable(name)
    if found is not None:
        return BackendStatus(name, True, False, version, (), found.reason, found.remedy)
    return BackendStatus(name, True, True, version, backend.precisions, None, None)


def library_version(name: str) -> str | None:
    """The installed version of a library, None where it is not known."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        packages = importlib.metadata.packages_distributions().get(name, ())
        return importlib.metadata.version(packages[0]) if packages else None


def create(
    weights: Weights,
    backend: str = "auto",
    precision: str = "auto",
    *,
    threads: int | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    warn: Callable[[str], None] = _log.warning,
) -> Runner:
    """A Runner of `weights`.

    backend     'fused' and 'tensorrt' (NVIDIA GPUs), 'onnxruntime', 'openvino', 'torch', or 'auto': fused where a
                GPU can be used, tensorrt where it cannot and an engine of these weights has been built, else the
                fastest measured among the installed ones (the measurement, a few seconds on a small array, is
                kept in the cache folder).
    precision   'fp32', 'fp16', 'bf16', tensorrt's 'tf32' and 'mixed', or 'auto': fp16 on a GPU; on a processor
                bf16 where it has that, the backend offers it, it is faster and its result on a small array is
                near that of fp32 (restort.backends.autotune.NEAR_DB); else fp32.
    threads     default: the physical cores that this process may use.
    say         receives one sentence when something was chosen automatically.
    warn        receives one when a result had to be computed again in another precision.

    Raises UsageError for an unknown backend or precision, a precision the backend has not, or threads below 1;
    RestortError for a backend that is not installed or does not load, or has no GPU that it can use, with the
    remedy.
    """
    _check_request(backend, precision, threads)
    runner = _on_a_gpu(weights, backend, precision, threads, say)
    if runner is None:
        from restort.backends.autotune import choose

        runner = choose(weights, _candidates(backend, precision), threads=threads, say=say, make=make)
    if hasattr(runner, "warn"):
        runner.warn = warn
    if hasattr(runner, "say"):
        runner.say = say
    return runner


def check(backend: str, precision: str, threads: int | None) -> None:
    """Raises the errors of `create` that need no weights and load no library: options that do not go together, a
    backend that is not installed or has no GPU that it can use."""
    _check_request(backend, precision, threads)
    if backend != "auto":
        _require_available(backend)


def _check_request(backend: str, precision: str, threads: int | None) -> None:
    """The same without asking for a GPU, which `make` does."""
    if backend != "auto" and backend not in _TABLE:
        raise UsageError(
            f"there is no backend {backend!r}; choose auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        )
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(
            f"there is no precision {precision!r}; choose auto, {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if backend != "auto" and precision not in ("auto", *_TABLE[backend].precisions):
        others = [name for name, other in _TABLE.items() if precision in other.precisions]
        raise UsageError(
            f"the backend {backend} has no {precision}; use --backend {' or '.join(others)}, "
            f"or --precision {' or '.join(_TABLE[backend].precisions)}"
        )
    if backend != "auto" and not installed(backend):
        raise RestortError(f"the backend {backend} is not installed; get it with: {_TABLE[backend].remedy}")


def _require_available(name: str) -> None:
    """Raise RestortError where a backend cannot be used here."""
    found = check_available(name)
    if found is not None:
        raise RestortError(f"the backend {name} cannot be used: {found.reason}; {found.remedy}")


def _on_a_gpu(
    weights: Weights, backend: str, precision: str, threads: int | None, say: Callable[[str], None]
) -> Runner | None:
    """The runner of the GPU backend that was asked for, or that `auto` takes first; None where it is to be another.

    Raises RestortError where the backend was asked for by name and cannot be used.
    """
    if backend == "auto":
        names = [
            n for n, b in _TABLE.items() if b.first and installed(n) and precision in ("auto", *b.precisions)
        ]
    else:
        names = [backend] if _TABLE[backend].device == "gpu" else []
    for name in names:
        chosen = _TABLE[name].precisions[0] if precision == "auto" else precision
        if backend == name:
            return make(name, chosen, weights, threads)
        if check_available(name) is not None:
            continue  # a machine without such a GPU: nothing to tell
        if _TABLE[name].ready and not _function(_TABLE[name].ready)(weights, chosen):
            continue  # it would work, after minutes of preparation that nobody asked for
        try:
            runner = make(name, chosen, weights, threads)
        except RestortError as error:
            say(f"auto does not use the GPU: {error}")
            continue
        say(f"auto took {name}/{chosen}: {getattr(runner, 'device', 'the GPU')}")
        return runner
    return None


def _candidates(backend: str, precision: str) -> list[tuple[str, str]]:
    """(backend, precision) pairs to choose from; RestortError where nothing is installed."""
    processor = [name for name in BACKENDS if _TABLE[name].device == "cpu" and installed(name)]
    names = [backend] if backend != "auto" else processor
    if not names:
        raise RestortError(f"no backend is installed; get one with: {_TABLE['onnxruntime'].remedy}")
    wanted = PRECISIONS if precision == "auto" else (precision,)
    pairs = [(name, p) for name in names for p in wanted if p in _TABLE[name].precisions]
    if not pairs:
        others = [
            name for name, other in _TABLE.items() if precision in other.precisions and name not in names
        ]
        ways = [f"{_TABLE[name].remedy} ({name})" for name in others if not installed(name)]
        ways += [f"{name} cannot be used: {found.reason}" for name in others if (found := _known(name))]
        raise RestortError(
            f"no backend that can be used here has {precision}; {'; '.join(ways) or 'use fp32'}"
        )
    return pairs


def _known(name: str) -> Unavailable | None:
    return check_available(name) if installed(name) else None


def make(name: str, precision: str, weights: Weights, threads: int | None) -> Runner:
    """The Runner of one backend, without any choice; RestortError where its library does not load."""
    backend = _TABLE[name]
    _require_available(name)
    try:
        importlib.import_module(_library(name))
        module: Any = importlib.import_module(f"restort.backends.{backend.module}")
    except ImportError as error:
        raise RestortError(
            f"the backend {name} does not load ({one_line(error)}); "
            f"install it again with: {backend.remedy} --force-reinstall"
        ) from None
    runner: Runner = getattr(module, backend.runner)(weights, precision, threads)
    return runner
