"""Which TensorRT is installed, and what it can do, found by looking at it rather than by its version.

TensorRT 8.6, 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`) share most of one interface. What they
differ in: 11 and RTX take precision from the types of the graph alone and have no flags for it; only RTX builds for
named compute capabilities and without a GPU; only the others have plugins and timing caches of use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from restort.backends.tensorrt.log import Log
from restort.errors import RestortError, UsageError
from restort.utils.gpu import load_lazily

Name: TypeAlias = Literal["tensorrt", "rtx"]

MODULES: dict[Name, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
TITLES: dict[Name, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
REMEDIES: dict[Name, str] = {"tensorrt": "pip install tensorrt", "rtx": "pip install 'restort[rtx]'"}


@dataclass(frozen=True)
class Capabilities:
    """What a library can do.

    strongly_typed        the types of the graph hold as they are, with the network's flag for it
    precision_flags       it can also be told to lower the precision of a float32 graph (weak typing)
    layer_precision       ... and which layers must keep theirs
    bfloat16              it knows the type
    newer_operators       it reads ONNX opset 20 and later, with Gelu
    compute_capabilities  it builds for named GPUs, so that none need be there
    plugins               operations of one's own can be added
    timing_cache          how long kernels take is kept from one build to the next
    progress              a build says how far it is
    stream_writer         a plan can be written while it is made
    runtime_cache         kernels are compiled where the engine runs, and kept
    engine_validity       an engine can be checked for this machine before it is opened
    graph_strategy        it records CUDA graphs by itself
    tactic_sources        kernels of cuBLAS and cuDNN can be shut out
    levels                how hard it searches can be set
    """

    strongly_typed: bool
    precision_flags: bool
    layer_precision: bool
    bfloat16: bool
    newer_operators: bool
    compute_capabilities: bool
    plugins: bool
    timing_cache: bool
    progress: bool
    stream_writer: bool
    runtime_cache: bool
    engine_validity: bool
    graph_strategy: bool
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
            strongly_typed=has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
            precision_flags=has("BuilderFlag.FP16"),
            layer_precision=has("ILayer.precision") and has("BuilderFlag.OBEY_PRECISION_CONSTRAINTS"),
            bfloat16=has("DataType.BF16"),
            newer_operators=has("ActivationType.GELU_ERF"),
            compute_capabilities=by_name,
            plugins=has("plugin") or (has("IPluginV2") and not by_name),
            timing_cache=has("IBuilderConfig.create_timing_cache") and not by_name,
            progress=has("IProgressMonitor") and has("IBuilderConfig.progress_monitor"),
            stream_writer=has("IStreamWriter") and has("Builder.build_serialized_network_to_stream"),
            runtime_cache=has("IRuntimeCache"),
            engine_validity=has("Runtime.get_engine_validity"),
            graph_strategy=has("CudaGraphStrategy"),
            tactic_sources=has("TacticSource.CUBLAS"),
            levels=has("IBuilderConfig.builder_optimization_level"),
        )

    def to_json(self) -> dict[str, bool]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Flavour:
    """One installed library, imported. `precisions` are those it can build; `title` is what people call it."""

    name: Name
    version: str
    module: Any
    capabilities: Capabilities
    log: Log

    @property
    def title(self) -> str:
        return f"{TITLES[self.name]} {self.version}"

    @property
    def precisions(self) -> tuple[str, ...]:
        low = ("fp16", "bf16", "mixed") if self.capabilities.bfloat16 else ("fp16", "mixed")
        return ("fp32", "tf32", *low)

    def targets(self) -> tuple[str, ...]:
        """The compute capabilities that can be named to the builder, such as ('8.0', '8.6', '12.0')."""
        if not self.capabilities.compute_capabilities:
            return ()
        names = [name for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)


def installed() -> dict[str, str]:
    """The flavours that are here and their versions, without importing them."""
    found = {}
    for name, module in MODULES.items():
        if importlib.util.find_spec(module) is not None:
            found[str(name)] = _version(module)
    return found


def find(flavour: str = "auto") -> Flavour:
    """The library of `flavour`: 'tensorrt', 'rtx', or 'auto'.

    'auto' takes the one that is installed; of both, TensorRT where the GPU of this machine is none that RTX builds
    for, such as an H100, and RTX otherwise.

    Raises UsageError for another name, RestortError where it is not installed or does not load.
    """
    if flavour not in ("auto", *MODULES):
        raise UsageError(f"there is no flavour {flavour!r} of TensorRT; choose auto, tensorrt or rtx")
    here = installed()
    names: tuple[Name, ...] = tuple(name for name in MODULES if flavour in ("auto", name))
    present = [name for name in names if name in here]
    if not present:
        ways = " or ".join(REMEDIES[name] for name in reversed(names))
        titles = " nor ".join(TITLES[name] for name in names)
        verb = "neither " if len(names) > 1 else ""
        raise RestortError(
            f"{verb}{titles} is installed; get it with: {ways}"
            if verb
            else f"{titles} is not installed; get it with: {ways}"
        )
    if len(present) == 1:
        return _load(present[0])
    return _load(_better())


def _better() -> Name:
    """Of both flavours the one that fits this machine's GPU."""
    from restort.backends.tensorrt.gpu import gpu

    here = gpu()
    try:
        rtx = _load("rtx")
    except RestortError:
        return "tensorrt"
    return "tensorrt" if here is not None and here.compute_capability not in rtx.targets() else "rtx"


@functools.cache
def _load(name: Name) -> Flavour:
    """The flavour, imported once; RestortError where that fails."""
    load_lazily()
    try:
        module: Any = importlib.import_module(MODULES[name])
        if not hasattr(module, "Builder"):
            raise ImportError("it has no builder; the stub of a package may be all there is")
        return adapt(name, module)
    except Exception as error:  # a damaged library raises what it likes
        reason = " ".join(str(error).split())[:160]
        raise RestortError(
            f"{TITLES[name]} is installed but does not load ({reason}); "
            f"install it again with: {REMEDIES[name]} --force-reinstall"
        ) from None


def adapt(name: Name, module: Any) -> Flavour:
    """A flavour of an imported module."""
    version = str(getattr(module, "__version__", ""))
    return Flavour(name, version, module, Capabilities.of(module), Log(module, TITLES[name]))


def _version(module: str) -> str:
    """The version of the package that holds `module`, '' where that is not known."""
    for package in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(package)
    return ""
