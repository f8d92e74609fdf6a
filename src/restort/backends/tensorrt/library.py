"""Which TensorRT is installed, and what it can do; abilities are read from the module, not from its version.

TensorRT 8.6, 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`) share most of one interface. Differences: from 10
on and in RTX the types of the graph decide the precision (strong typing). Only RTX builds for named compute
capabilities, without their GPUs. Only the others have plugins and a useful timing cache. The lean runtime of TensorRT
(`tensorrt-lean`) has no builder: it runs version-compatible engines.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from restort.backends.tensorrt.logger import Logger
from restort.errors import RestortError, UsageError
from restort.utils.extras import install_command
from restort.utils.gpu import find_gpu, load_lazily

Name: TypeAlias = Literal["tensorrt", "rtx"]

MODULES: dict[Name, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings"),
    "rtx": ("tensorrt_rtx",),
}
"""The modules of each flavour; the first that is installed is taken. The lean ones run engines and build none."""
TITLES: dict[Name, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
REMEDIES: dict[Name, str] = {"tensorrt": "pip install tensorrt", "rtx": install_command("rtx")}


@dataclass(frozen=True)
class Capabilities:
    """What a library can do.

    builds                it has a builder
    strongly_typed        networks take the types of the graph as they are
    bfloat16              the data type exists
    newer_operators       the parser reads ONNX opset 20 and later, with Gelu
    compute_capabilities  the builder takes named GPUs, none of which need be present
    timing_cache          the builder reuses times of kernels measured by earlier builds
    progress              the builder reports its progress
    tactic_sources        kernels of cuBLAS and cuDNN can be excluded
    levels                the effort of the search can be set
    """

    builds: bool
    strongly_typed: bool
    bfloat16: bool
    newer_operators: bool
    compute_capabilities: bool
    timing_cache: bool
    progress: bool
    tactic_sources: bool
    levels: bool

    @staticmethod
    def of(module: Any) -> Capabilities:
        def has(path: str) -> bool:
            found = module
            for name in path.split("."):
                if not hasattr(found, name):
                    return False
                found = getattr(found, name)
            return True

        by_name = has("ComputeCapability") and has("IBuilderConfig.set_compute_capability")
        return Capabilities(
            builds=has("Builder"),
            strongly_typed=has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
            bfloat16=has("DataType.BF16"),
            newer_operators=has("ActivationType.GELU_ERF"),
            compute_capabilities=by_name,
            timing_cache=has("IBuilderConfig.create_timing_cache") and not by_name,
            progress=has("IProgressMonitor") and has("IBuilderConfig.progress_monitor"),
            tactic_sources=has("TacticSource.CUBLAS"),
            levels=has("IBuilderConfig.builder_optimization_level"),
        )

    def to_json(self) -> dict[str, bool]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Flavour:
    """One installed library, imported.

    name        'tensorrt' or 'rtx'
    version     '8.6.0', '11.4.0.106', '1.7.1.116'
    module      tensorrt or tensorrt_rtx
    logger      the only logger of this library in the process
    """

    name: Name
    version: str
    module: Any
    capabilities: Capabilities
    logger: Logger

    @property
    def title(self) -> str:
        """The name for messages, with the version."""
        return f"{TITLES[self.name]} {self.version}{'' if self.capabilities.builds else ' (lean)'}"

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that engines can be built in."""
        low = ("fp16", "bf16", "mixed") if self.capabilities.bfloat16 else ("fp16", "mixed")
        return ("fp32", "tf32", *low)

    def targets(self) -> tuple[str, ...]:
        """The compute capabilities that the builder takes by name, such as ('8.0', '8.6', '12.0'); () for none."""
        if not self.capabilities.compute_capabilities:
            return ()
        names = [name for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)


def create_runtime(flavour: Flavour, host_code: bool = False) -> Any:
    """Create a Runtime. Raises RestortError where the library cannot, such as without a driver that suits it.

    host_code   allow engines that hold code for the processor: version-compatible ones bring a runtime of their own
    """
    with flavour.logger.capture() as captured:
        runtime = flavour.module.Runtime(flavour.logger.ilogger)
    if runtime is not None and captured.errors():
        # The bindings return an object around a null pointer, and any call on it ends the process, destruction too.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
        runtime = None
    if runtime is None:
        raise captured.error("starting its runtime")
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime


def installed() -> dict[str, str]:
    """Return the versions of the installed flavours, without importing them."""
    found = {}
    for name in MODULES:
        if (module := _module(name)) is not None:
            found[str(name)] = _version(module)
    return found


def _module(name: Name) -> str | None:
    """The module of a flavour that is installed."""
    return next((module for module in MODULES[name] if importlib.util.find_spec(module) is not None), None)


def find(flavour: str = "auto") -> Flavour:
    """Import the library of `flavour`: 'tensorrt', 'rtx', or 'auto'.

    'auto' takes the installed one. Of two it takes RTX, unless RTX does not support the GPU of this machine, such as
    an H100.

    Raises UsageError for another name, RestortError where the library is not installed or does not load.
    """
    if flavour not in ("auto", *MODULES):
        raise UsageError(f"unknown flavour of TensorRT: {flavour!r}; choose auto, tensorrt or rtx")
    here = installed()
    names: tuple[Name, ...] = tuple(name for name in MODULES if flavour in ("auto", name))
    present = [name for name in names if name in here]
    if not present:
        ways = " or ".join(REMEDIES[name] for name in reversed(names))
        titles = " nor ".join(TITLES[name] for name in names)
        text = f"neither {titles} is" if len(names) > 1 else f"{titles} is not"
        raise RestortError(f"{text} installed; get it with: {ways}")
    return _load(present[0] if len(present) == 1 else _better())


def _better() -> Name:
    """Choose between both flavours by the GPU of this machine."""
    gpu = find_gpu()
    try:
        rtx = _load("rtx")
    except RestortError:
        return "tensorrt"
    return "tensorrt" if gpu is not None and gpu.compute_capability not in rtx.targets() else "rtx"


@functools.cache
def _load(name: Name) -> Flavour:
    """Import a flavour, once; RestortError where that fails."""
    load_lazily()
    try:
        module: Any = importlib.import_module(_module(name) or MODULES[name][0])
        if not hasattr(module, "Runtime"):
            raise ImportError("the module has no Runtime; only the stub of the package may be installed")
        return adapt(name, module)
    except Exception as error:  # a damaged library raises errors of any type
        reason = " ".join(str(error).split())[:160]
        raise RestortError(
            f"{TITLES[name]} is installed but does not load ({reason}); "
            f"install it again with: {REMEDIES[name]} --force-reinstall"
        ) from None


def adapt(name: Name, module: Any) -> Flavour:
    """Make a Flavour of an imported module."""
    version = str(getattr(module, "__version__", ""))
    return Flavour(name, version, module, Capabilities.of(module), Logger(module, TITLES[name]))


def _version(module: str) -> str:
    """The version of the package that holds `module`, '' where it is unknown."""
    for package in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(package)
    return ""
