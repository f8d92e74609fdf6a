"""Every backend: how it is found, checked and loaded, and which one `auto` takes.

`create` makes a Runner of weights; `status` reports what works on this machine. A backend's library is imported when a
runner is made, never before. To add a backend: write a Runner and add an entry to BACKENDS.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from restort.errors import RestortError, UsageError
from restort.runner import PRECISIONS, BackendStatus, Notify, Runner, one_line
from restort.utils.extras import install_command, library_version
from restort.utils.quiet_imports import onnx_runtime, openvino

if TYPE_CHECKING:
    from restort.utils.gpu import Unavailable
    from restort.weights.checkpoint import Weights

    RunnerClass = Callable[[Weights, str, int | None], Runner]

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


def _nothing_missing() -> Unavailable | None:
    return None


def _always_ready(weights: Weights, precision: str) -> bool:
    return True


@dataclass(frozen=True)
class Backend:
    """One backend. Its functions import what they need when they are called.

    libraries          names of the packages it runs on; the first one that is installed counts
    install            command that installs it
    precisions         what it computes in, the usual one first
    load               import it and return the class of its runners: (weights, precision, threads) -> Runner
    exact_precisions   precisions of `Runner.exact`, the usual one first; empty where it has none
    is_gpu             it runs on an NVIDIA GPU; `auto` takes it before any backend on the processor, unmeasured
    check_available    what is missing to use it, found without importing its library
    check_usable       like check_available, after importing its library
    is_ready           whether `auto` can take it for (weights, precision) without minutes of preparation
    """

    libraries: tuple[str, ...]
    install: str
    precisions: tuple[str, ...]
    load: Callable[[], RunnerClass]
    exact_precisions: tuple[str, ...] = ()
    is_gpu: bool = False
    check_available: Callable[[], Unavailable | None] = _nothing_missing
    check_usable: Callable[[], Unavailable | None] = _nothing_missing
    is_ready: Callable[[Weights, str], bool] = _always_ready


def _load_onnxruntime() -> RunnerClass:
    from restort.backends.onnxruntime_cpu import OnnxRuntimeRunner

    return OnnxRuntimeRunner


def _load_openvino() -> RunnerClass:
    from restort.backends.openvino_cpu import OpenVinoRunner

    return OpenVinoRunner


def _load_torch() -> RunnerClass:
    from restort.backends.torch_cpu import TorchRunner

    return TorchRunner


def _load_fused() -> RunnerClass:
    from restort.backends.fused.runner import FusedRunner

    return FusedRunner


def _fused_available() -> Unavailable | None:
    from restort.utils import gpu

    return gpu.check_available()


def _fused_usable() -> Unavailable | None:
    from restort.utils import gpu

    return gpu.check_usable()


def _load_tensorrt() -> RunnerClass:
    from restort.backends.tensorrt.runner import TensorrtRunner

    return TensorrtRunner


def _tensorrt_available() -> Unavailable | None:
    from restort.backends.tensorrt import availability

    return availability.check_available()


def _tensorrt_usable() -> Unavailable | None:
    from restort.backends.tensorrt import availability

    return availability.check_usable()


def _tensorrt_is_ready(weights: Weights, precision: str) -> bool:
    from restort.backends.tensorrt import availability

    return availability.is_ready(weights, precision)


BACKENDS = {
    "onnxruntime": Backend(("onnxruntime",), "pip install onnxruntime", ("fp32",), _load_onnxruntime),
    "openvino": Backend(("openvino",), install_command("openvino"), ("fp32", "bf16"), _load_openvino),
    "torch": Backend(
        ("torch",), install_command("torch"), ("fp32", "bf16"), _load_torch, exact_precisions=("fp32",)
    ),
    "fused": Backend(
        ("torch",),
        install_command("fused"),
        ("fp16", "bf16", "fp32"),
        _load_fused,
        exact_precisions=("fp32", "fp16"),
        is_gpu=True,
        check_available=_fused_available,
        check_usable=_fused_usable,
    ),
    "tensorrt": Backend(
        ("tensorrt_rtx", "tensorrt", "tensorrt_lean"),
        f"{install_command('rtx')} (or the extra tensorrt)",
        ("fp16", "bf16", "fp32", "tf32", "mixed"),
        _load_tensorrt,
        is_gpu=True,
        check_available=_tensorrt_available,
        check_usable=_tensorrt_usable,
        is_ready=_tensorrt_is_ready,
    ),
}
"""In the order in which `auto` and `restort doctor` go through them."""


def installed(name: str) -> bool:
    """Return whether the library of a backend can be found; it is not imported."""
    return importlib.util.find_spec(_library(name)) is not None


def check_available(name: str) -> Unavailable | None:
    """Return what is missing to use an installed backend here; None where nothing is known to be.

    Nothing large is imported, so for backends on the processor the answer is always None.
    """
    return BACKENDS[name].check_available()


def check_usable(name: str) -> Unavailable | None:
    """Like `check_available`, and import the backend's library to see whether it works."""
    return BACKENDS[name].check_usable()


def _library(name: str) -> str:
    """The first installed library of a backend, or the first of all where none is."""
    names = BACKENDS[name].libraries
    return next((library for library in names if importlib.util.find_spec(library) is not None), names[0])


def status() -> list[BackendStatus]:
    """Check every backend, in the order of BACKENDS. Imports their libraries to see whether they load."""
    return [_status(name, backend) for name, backend in BACKENDS.items()]


def _status(name: str, backend: Backend) -> BackendStatus:
    library = _library(name)
    if not installed(name):
        return BackendStatus(name, False, False, None, (), f"{library} is not installed", backend.install)
    version = library_version(library)
    missing = check_available(name)
    if missing is not None:
        return BackendStatus(name, True, False, version, (), missing.reason, missing.remedy)
    try:
        _import(library)
    except Exception as error:
        reason = f"{library} is installed but does not load ({one_line(error)})"
        return BackendStatus(name, True, False, version, (), reason, f"{backend.install} --force-reinstall")
    missing = check_usable(name)
    if missing is not None:
        return BackendStatus(name, True, False, version, (), missing.reason, missing.remedy)
    return BackendStatus(name, True, True, version, backend.precisions, None, None)


def _import(library: str) -> None:
    """Import the library of a backend."""
    quiet = {"onnxruntime": onnx_runtime, "openvino": openvino}
    if library in quiet:
        quiet[library]()
    else:
        importlib.import_module(library)


def create(
    weights: Weights,
    backend: str = "auto",
    precision: str = "auto",
    *,
    threads: int | None = None,
    notify: Notify = lambda sentence: None,
    warn: Notify = _log.warning,
) -> Runner:
    """Make a Runner of `weights`.

    backend     a key of BACKENDS or 'auto': fused where a GPU can be used; tensorrt where fused cannot and an engine of
                these weights is in the cache; otherwise the fastest of the installed ones on the processor, measured in
                a few seconds on a small array (the cache folder keeps the result).
    precision   one of PRECISIONS or 'auto': fp16 on a GPU. On a processor bf16 where the processor and the backend have
                it, it is faster, and its result on a small array is within restort.backends.autotune.NEAR_DB of fp32;
                otherwise fp32.
    threads     default: the physical cores that this process may use.
    notify      receives a sentence when something was chosen automatically or takes long.
    warn        receives a sentence when a result was computed again in another precision.

    Raises UsageError for an unknown backend or precision, a precision that the backend does not support, or threads
    below 1; RestortError with a remedy for a backend that is not installed, does not load or finds no usable GPU.
    """
    _check_request(backend, precision, threads)
    runner = _on_a_gpu(weights, backend, precision, threads, notify)
    if runner is None:
        from restort.backends.autotune import choose

        runner = choose(weights, _candidates(backend, precision), threads=threads, notify=notify, make=make)
    runner.notify, runner.warn = notify, warn
    return runner


def check(backend: str, precision: str, threads: int | None) -> None:
    """Raise those errors of `create` that need neither weights nor a library.

    These are options that do not go together, and a backend that is not installed or finds no usable GPU.
    """
    _check_request(backend, precision, threads)
    if backend != "auto":
        _require_available(backend)


def _check_request(backend: str, precision: str, threads: int | None) -> None:
    """Like `check`, without looking for a GPU, which `make` does."""
    if backend not in ("auto", *BACKENDS):
        raise UsageError(f"unknown backend {backend!r}; use {_either(('auto', *BACKENDS))}")
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"unknown precision {precision!r}; use {_either(('auto', *PRECISIONS))}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if backend == "auto":
        return
    own = BACKENDS[backend].precisions
    if precision not in ("auto", *own):
        others = [name for name, other in BACKENDS.items() if precision in other.precisions]
        raise UsageError(
            f"backend {backend!r} does not support {precision} (supported: {', '.join(own)}); "
            f"use --backend {_either(others)}"
        )
    if not installed(backend):
        raise RestortError(
            f"backend {backend!r} is not installed; install it with: {BACKENDS[backend].install}"
        )


def _either(names: Iterable[str]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _require_available(name: str) -> None:
    """Raise RestortError where a backend cannot be used here."""
    missing = check_available(name)
    if missing is not None:
        raise RestortError(f"cannot use backend {name!r}: {missing.reason}; {missing.remedy}")


def _on_a_gpu(
    weights: Weights, backend: str, precision: str, threads: int | None, notify: Notify
) -> Runner | None:
    """Make the runner on a GPU that was named or that `auto` takes; return None where another backend is to run.

    Raises RestortError where the backend was named and cannot be used.
    """
    if backend == "auto":
        names = [
            name
            for name, other in BACKENDS.items()
            if other.is_gpu and installed(name) and precision in ("auto", *other.precisions)
        ]
    else:
        names = [backend] if BACKENDS[backend].is_gpu else []
    for name in names:
        chosen = BACKENDS[name].precisions[0] if precision == "auto" else precision
        if backend == name:
            return make(name, chosen, weights, threads)
        if check_available(name) is not None:
            continue  # most machines have no such GPU: no news
        if not BACKENDS[name].is_ready(weights, chosen):
            continue
        try:
            runner = make(name, chosen, weights, threads)
        except RestortError as error:
            notify(f"auto cannot use the GPU: {error}")
            continue
        notify(f"auto selected {name}/{chosen} on {runner.device}")
        return runner
    return None


def _candidates(backend: str, precision: str) -> list[tuple[str, str]]:
    """(backend, precision) pairs on the processor to choose from. Raises RestortError where there are none."""
    on_processor = [name for name, other in BACKENDS.items() if not other.is_gpu and installed(name)]
    names = [backend] if backend != "auto" else on_processor
    if not names:
        raise RestortError(f"no backend is installed; install one with: {BACKENDS['onnxruntime'].install}")
    wanted = PRECISIONS if precision == "auto" else (precision,)
    pairs = [(name, p) for name in names for p in wanted if p in BACKENDS[name].precisions]
    if not pairs:
        others = [
            name for name, other in BACKENDS.items() if precision in other.precisions and name not in names
        ]
        remedies = [f"{BACKENDS[name].install} ({name})" for name in others if not installed(name)]
        for name in others:
            missing = check_available(name) if installed(name) else None
            if missing is not None:
                remedies.append(f"backend {name!r} cannot be used: {missing.reason}")
        raise RestortError(
            f"no backend that works here supports {precision}; {'; '.join(remedies) or 'use fp32'}"
        )
    return pairs


def make(name: str, precision: str, weights: Weights, threads: int | None) -> Runner:
    """Make the Runner of one backend, without any choice. Raises RestortError where its library does not load."""
    backend = BACKENDS[name]
    _require_available(name)
    try:
        _import(_library(name))
        runner_class = backend.load()
    except ImportError as error:
        raise RestortError(
            f"backend {name!r} does not load ({one_line(error)}); "
            f"reinstall it with: {backend.install} --force-reinstall"
        ) from None
    return runner_class(weights, precision, threads)
