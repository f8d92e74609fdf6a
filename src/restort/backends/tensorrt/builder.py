"""From a graph to a serialized engine: one `build` for every flavour of TensorRT.

From TensorRT 10 on and in RTX the network is strongly typed: the types of the graph are all there is to say. TensorRT
8.6 is weakly typed: the builder may compute any layer in any precision that its flags allow, unless the layer is held
to one (OBEY_PRECISION_CONSTRAINTS). `WeakTyping` says how that is done for each architecture.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import onnx

from restort.backends.tensorrt import inspector
from restort.backends.tensorrt import network as networks
from restort.backends.tensorrt.library import Flavour
from restort.backends.tensorrt.logger import CapturedMessages, plain
from restort.backends.tensorrt.options import BuildOptions, Built, Progress
from restort.backends.tensorrt.sidecar import SCHEMA
from restort.errors import RestortError, UsageError
from restort.export import typed
from restort.export.fixed import with_fixed_input
from restort.export.form import ENGINE_PRECISIONS
from restort.export.operators import inlined
from restort.utils.gpu import Gpu, find_gpu
from restort.version import __version__

MOST_THREADS = 16  # more do not shorten a build, and each takes memory
PROGRESS_STEP = 0.005  # smaller steps are not reported: they come by the thousand


@dataclass(frozen=True)
class WeakTyping:
    """How a weakly typed library builds engines of an architecture in fp16 and mixed precision.

    float32_graph   build from a float32 graph and set types of single layers (network.set_fp16_layer_precisions);
                    otherwise build from a float16 graph and hold layers to its types.
    all_layers      with a float16 graph: hold all layers to its types; otherwise only the float32 ones.
    level           default of BuildOptions.level.
    fixed_size      build an engine for each size: arithmetic of sizes, two fifths of the layers of a Restormer, is
                    then done before the build.

    Restormer: with all layers held to a float16 graph, TensorRT 8.6 finds no kernel ("Mismatched type for tensor").
    With only the float32 layers held, it computes some float16 convolutions in float32. Above level 0 a build takes
    more than 330 s.
    """

    float32_graph: bool
    all_layers: bool
    level: int | None
    fixed_size: bool

    @staticmethod
    def of(architecture: str) -> WeakTyping:
        """The settings of 'restormer', 'elan', or a graph that is not RestoRT's ('')."""
        if architecture == "restormer":
            return WeakTyping(float32_graph=True, all_layers=False, level=0, fixed_size=True)
        return WeakTyping(float32_graph=False, all_layers=True, level=None, fixed_size=False)


def build(flavour: Flavour, graph: onnx.ModelProto | bytes, options: BuildOptions) -> Built:
    """Build an engine of `graph`, which has one picture (N, C, H, W) in and one out.

    Raises UsageError for options that the library or the graph does not support; RestortError where the graph is not of
    the precision requested (the error names the layers), the builder fails, or the engine computes in another
    precision.
    """
    check_options(flavour, options)
    model = inlined(onnx.load_from_string(graph) if isinstance(graph, bytes) else graph)
    model = typed.with_float32_ports(model)
    shape = networks.input_shape(model)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    networks.check_profile(shape, options.profile, int(metadata.get("restort.size_multiple", 1)))
    architecture = metadata.get("restort.architecture", "")
    is_weak = not flavour.capabilities.strongly_typed and options.precision in ("fp16", "mixed")
    # A graph with float16 convolutions already says which layers are float16.
    by_layers = is_weak and WeakTyping.of(architecture).float32_graph
    by_layers = by_layers and "float16" not in typed.convolutions(model).values()
    wanted = "fp32" if by_layers else options.precision
    if options.precision == "mixed" and "restort.keep_fp32" not in metadata:
        wanted = "mixed"  # nobody chose what stays float32, so only the types of the graph can say it
    convolutions = typed.check_precision(model, wanted)
    is_static = options.profile.is_fixed and wants_fixed_size(flavour, architecture)
    if is_static:
        model = with_fixed_input(model, (options.profile.opt[0], shape[1], *options.profile.opt[1:]))
    data: bytes = model.SerializeToString(deterministic=True)

    quantized = _quantized_type(flavour, model)

    def hold_layers(network: Any, config: Any) -> dict[str, Any]:
        held = _hold_layers(flavour, network, config, model, architecture, by_layers) if is_weak else {}
        if quantized and not flavour.capabilities.strongly_typed:
            config.set_flag(flavour.module.BuilderFlag.INT8)
        return held | ({"quantization": quantized} if quantized else {})

    outcome = run_builder(flavour, data, options, shape[1], architecture, hold_layers)
    gpu = find_gpu()
    report = make_report(flavour, options, model, data, outcome, gpu) | {
        "keep_fp32": [name for name in metadata.get("restort.keep_fp32", "").split(",") if name],
        "flags": outcome.flags | {"static": is_static},
        "layers": {"source": "network"} | outcome.layers,
    }
    if gpu is not None and (not options.compute_capabilities or gpu.compute_capability in report["targets"]):
        opened, why = inspector.inspect_layers(
            flavour, inspector.deserialize(flavour, outcome.plan, options.version_compatible)
        )
        if why:
            report["unchecked"] = why
        if opened:
            inspector.check_precision(
                options.precision, opened, low_convolutions(model, convolutions, by_layers)
            )
            report["layers"] = {"source": "engine"} | inspector.output_types(opened)
    return Built(outcome.plan, report, outcome.timing_cache)


def _quantized_type(flavour: Flavour, model: onnx.ModelProto) -> str:
    """Return 'int8' or 'fp8' of a graph with QuantizeLinear or DequantizeLinear, '' of another.

    Raises UsageError where the library cannot build it.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    operators = {node.op_type for node in model.graph.node}
    if not operators & {"QuantizeLinear", "DequantizeLinear"}:
        return ""
    eight_bit = {onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2}
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kind = metadata.get("restort.quantization") or ("fp8" if kinds & eight_bit else "int8")
    if not flavour.capabilities.newer_operators:
        opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if kind == "fp8":
            raise UsageError(
                f"{flavour.title} does not support FP8; export the graph with --precision int8 --opset 17"
            )
        if opset > 17:
            raise UsageError(
                f"{flavour.title} reads no opset newer than 17, and the quantized graph has {opset}; "
                "export it with --precision int8 --opset 17"
            )
    return kind


def check_options(flavour: Flavour, options: BuildOptions) -> None:
    """Raise UsageError where the library does not support `options`, of kernels that TensorRT chooses."""
    if options.precision not in ENGINE_PRECISIONS:
        raise UsageError(
            f"unknown precision of an engine: {options.precision!r}; choose {', '.join(ENGINE_PRECISIONS)}"
        )
    if options.precision not in flavour.precisions:
        raise UsageError(
            f"{flavour.title} does not support {options.precision}; choose {', '.join(flavour.precisions)}"
        )
    if options.version_compatible and flavour.name == "rtx":
        raise UsageError("--version-compatible is only for TensorRT; leave it out, or use --flavour tensorrt")
    if options.profile.others:
        raise UsageError("several --shape are only for --kernels fused; give one, or MIN,OPT,MAX")
    targets = flavour.targets()
    for capability in options.compute_capabilities:
        if not targets:
            raise UsageError(
                f"{flavour.title} builds only for the GPU of this machine; leave --compute-capability out, or use "
                "--flavour rtx"
            )
        if capability not in targets:
            raise UsageError(
                f"{flavour.title} does not build for compute capability {capability}; choose from {', '.join(targets)}"
            )
    if not options.compute_capabilities:
        _check_gpu(flavour, targets)
    if options.level is not None and not 0 <= options.level <= 5:
        raise UsageError(f"--level must be from 0 to 5, not {options.level}")


def _check_gpu(flavour: Flavour, targets: tuple[str, ...]) -> None:
    """Raise UsageError where this machine has no GPU that the library builds for."""
    gpu = find_gpu()
    if gpu is None:
        remedy = (
            f"name one with --compute-capability, such as {targets[-2]}"
            if targets
            else "build on the target machine (or use --flavour rtx --compute-capability ...)"
        )
        raise UsageError(f"no NVIDIA GPU found; {flavour.title} engines are built for a GPU: {remedy}")
    if targets and gpu.compute_capability not in targets:
        raise UsageError(
            f"{flavour.title} does not support {gpu.name} (compute capability {gpu.compute_capability}); use --flavour "
            "tensorrt, or name other GPUs with --compute-capability"
        )


@dataclass(frozen=True)
class Outcome:
    """What the library's builder gives.

    plan            the serialized engine
    flags           the settings of the builder, for the report
    layers          the number of layers of the network by the type of their output
    timing_cache    with the times of this build, where the library has one
    warnings        the library's warnings, each once, at most 20
    """

    plan: bytes
    seconds: float
    flags: dict[str, Any]
    layers: dict[str, int]
    timing_cache: bytes | None
    warnings: list[str]


def run_builder(
    flavour: Flavour,
    data: bytes,
    options: BuildOptions,
    channels: int,
    architecture: str,
    hold_layers: Callable[[Any, Any], dict[str, Any]] = lambda network, config: {},
) -> Outcome:
    """Parse the serialized graph `data`, of inputs of so many channels, and build the engine.

    hold_layers     receives the network and the builder's config before the build; returns further settings for the
                    report.
    """
    start = time.perf_counter()
    with flavour.logger.capture() as captured:
        builder = create_builder(flavour, captured)
        network, parser = networks.parse(flavour, builder, data)
        config = builder.create_builder_config()
        flags = configure(flavour, config, options, architecture)
        flags["threads"] = _set_threads(builder)
        networks.add_profile(flavour, builder, config, network, channels, options.profile)
        flags |= hold_layers(network, config)
        plan = build_engine(flavour, builder, network, config, options.progress, captured)
        seconds = round(time.perf_counter() - start, 2)
        layers = networks.layer_types(flavour.module, network)
        timing_cache = _timing_cache(flavour, config)
        del parser  # it must live as long as the network is used
    warnings = sorted(set(map(plain, captured.warnings())))[:20]
    return Outcome(plan, seconds, flags, layers, timing_cache, warnings)


def create_builder(flavour: Flavour, captured: CapturedMessages) -> Any:
    """Create the library's Builder. Raises RestortError where that fails, such as without a GPU."""
    try:
        return flavour.module.Builder(flavour.logger.ilogger)
    except TypeError:  # pybind11's answer to a null pointer
        raise captured.error("starting the builder") from None


def build_engine(
    flavour: Flavour,
    builder: Any,
    network: Any,
    config: Any,
    progress: Progress | None,
    captured: CapturedMessages,
) -> bytes:
    """Build the serialized engine. Raises RestortError where the builder fails, and what `progress` raised."""
    phases = Phases(progress or (lambda phase, share: None))
    if flavour.capabilities.progress:
        monitor = _progress_monitor(flavour.module, phases)  # the config does not keep it alive
        config.progress_monitor = monitor
    elif progress is not None:
        progress("Building engine", None)
    plan = builder.build_serialized_network(network, config)
    if phases.stopped is not None:
        raise phases.stopped
    if plan is None:
        raise captured.error("building the engine")
    return bytes(plan)


def low_convolutions(model: onnx.ModelProto, convolutions: dict[str, str], by_layers: bool) -> set[str]:
    """The convolutions that an engine must not compute in float32, from their types in the graph.

    by_layers   the graph is float32, and set_fp16_layer_precisions made all convolutions float16 that may be.
    """
    low = {name for name, kind in convolutions.items() if by_layers or kind != "float32"}
    return low - typed.float32_nodes(model)


def graph_precision(flavour: Flavour, precision: str, architecture: str) -> str:
    """The precision of the graph to emit for an engine of `precision`."""
    is_weak = not flavour.capabilities.strongly_typed and precision in ("fp16", "mixed")
    return "fp32" if is_weak and WeakTyping.of(architecture).float32_graph else precision


def wants_fixed_size(flavour: Flavour, architecture: str) -> bool:
    """Return whether every size should have its own engine, because a build for several sizes takes too long."""
    return not flavour.capabilities.strongly_typed and WeakTyping.of(architecture).fixed_size


def configure(flavour: Flavour, config: Any, options: BuildOptions, architecture: str) -> dict[str, Any]:
    """Set everything in the builder's config but the profile; return what was set, for the report."""
    module, can = flavour.module, flavour.capabilities
    level = options.level
    if level is None and can.levels and not can.strongly_typed:
        level = WeakTyping.of(architecture).level
    flags: dict[str, Any] = {
        "strongly_typed": can.strongly_typed,
        "tf32": options.precision not in ("fp32", "mixed"),
        "level": level,
    }
    set_tf32 = config.set_flag if flags["tf32"] else config.clear_flag
    set_tf32(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if level is not None:
        if not can.levels:
            raise UsageError(f"{flavour.title} does not support --level; leave it out")
        config.builder_optimization_level = level
    if can.tactic_sources:  # engines then need neither cuBLAS nor cuDNN where they run
        own = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        sources = [getattr(module.TacticSource, name) for name in own if hasattr(module.TacticSource, name)]
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
        flags["tactic_sources"] = [source.name for source in sources]
    sharing = getattr(getattr(module, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if sharing is not None and not options.profile.sizes:  # of single sizes each context has its own profile
        # Contexts of several shapes share one profile; from TensorRT 10 on they always may.
        config.set_preview_feature(sharing, True)
        flags["profile_sharing"] = True
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
        flags["version_compatible"] = True
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            target = getattr(module.ComputeCapability, f"SM{capability.replace('.', '')}")
            if not config.set_compute_capability(target, i):
                raise RestortError(f"{flavour.title} refuses to build for compute capability {capability}")
    if can.timing_cache:
        cache = config.create_timing_cache(options.timing_cache or b"")
        if cache is None or not config.set_timing_cache(cache, False):  # of another GPU or version
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return flags


def _set_threads(builder: Any) -> int | None:
    """Let the builder use the processor's cores; return how many, None where the library decides."""
    if not hasattr(builder, "max_threads"):
        return None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    builder.max_threads = count = min(usable, MOST_THREADS)
    return count


def _hold_layers(
    flavour: Flavour, network: Any, config: Any, model: onnx.ModelProto, architecture: str, by_layers: bool
) -> dict[str, Any]:
    """Allow a weakly typed builder float16, and hold layers to types; return what was set, for the report."""
    config.set_flag(flavour.module.BuilderFlag.FP16)
    config.set_flag(flavour.module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    if by_layers:
        count = networks.set_fp16_layer_precisions(flavour, network, model)
        return {"layer_precisions": "fp16 convolutions", "constrained_layers": count}
    every = WeakTyping.of(architecture).all_layers
    types = typed.tensor_types(model)
    count = networks.set_layer_precisions_from_graph(flavour, network, types, all_layers=every)
    return {"layer_precisions": "graph" if every else "float32 of the graph", "constrained_layers": count}


def _timing_cache(flavour: Flavour, config: Any) -> bytes | None:
    cache = config.get_timing_cache() if flavour.capabilities.timing_cache else None
    return None if cache is None else bytes(cache.serialize())


def make_report(
    flavour: Flavour,
    options: BuildOptions,
    model: onnx.ModelProto,
    data: bytes,
    outcome: Outcome,
    gpu: Gpu | None,
) -> dict[str, Any]:
    """Make the report of an engine (restort.backends.tensorrt.sidecar), built on the machine of `gpu`.

    model, data     the graph, and its bytes as given to the parser.

    The caller adds `keep_fp32`, `flags` and `layers`.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return {
        "schema": SCHEMA,
        "restort": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": outcome.seconds,
        "bytes": len(outcome.plan),
        "sha256": hashlib.sha256(outcome.plan).hexdigest(),
        "flavour": flavour.name,
        "version": flavour.version,
        "targets": list(options.compute_capabilities) or ([gpu.compute_capability] if gpu else []),
        "gpu": gpu.to_json() if gpu else None,
        "graph": _graph_report(model, data),
        "model": _model_report(metadata),
        "profile": options.profile.to_json(),
        "precision": options.precision,
        "warnings": outcome.warnings,
    }


def _graph_report(model: onnx.ModelProto, data: bytes) -> dict[str, Any]:
    weights = {tensor.name for tensor in model.graph.initializer}

    def port(value: onnx.ValueInfoProto) -> dict[str, Any]:
        kind = value.type.tensor_type
        dims = [d.dim_value or d.dim_param or None for d in kind.shape.dim]
        return {"name": value.name, "dtype": typed.NAMES.get(kind.elem_type, "other"), "shape": dims}

    opsets = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "nodes": len(model.graph.node),
        "opset": next(opsets, None),
        "inputs": [port(value) for value in model.graph.input if value.name not in weights],
        "outputs": [port(value) for value in model.graph.output],
    }


def _model_report(metadata: dict[str, str]) -> dict[str, Any] | None:
    if "restort.architecture" not in metadata:
        return None
    return {
        "name": metadata.get("restort.model", ""),
        "architecture": metadata["restort.architecture"],
        "scale": int(metadata.get("restort.scale", 1)),
        "size_multiple": int(metadata.get("restort.size_multiple", 1)),
        "weights_sha256": metadata.get("restort.weights_sha256", ""),
    }


class Phases:
    """The library's nested phases, of so many steps each, as one share. A phase is one step of its parent."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stopped: BaseException | None = None
        self._stack: list[list[Any]] = []  # name, steps, steps done
        self._reported = "", 0.0

    def start(self, name: str, steps: int) -> None:
        self._stack.append([name, max(steps, 1), 0])
        self._report()

    def step(self, name: str, step: int) -> bool:
        """Note a finished step; return whether the build shall go on."""
        for phase in self._stack:
            if phase[0] == name:
                phase[2] = min(step + 1, phase[1])
        self._report()
        return self.stopped is None

    def finish(self, name: str) -> None:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i][0] == name:
                del self._stack[i:]
                break
        self._report()

    def stop(self, reason: BaseException) -> None:
        """End the build at its next step."""
        self.stopped = self.stopped or reason

    def _report(self) -> None:
        if not self._stack or self.stopped is not None:
            return
        done, share = 0.0, 1.0
        for _, steps, finished in self._stack:
            done += share * finished / steps
            share /= steps
        name, share = self._stack[-1][0], min(done, 1.0)
        if name == self._reported[0] and share < self._reported[1] + PROGRESS_STEP:
            return
        self._reported = name, max(self._reported[1], share)  # some phases come more than once
        try:
            self.progress(*self._reported)
        except BaseException as error:  # Ctrl-C, which must not pass through the library
            self.stop(error)


def _progress_monitor(module: Any, phases: Phases) -> Any:
    """Make an IProgressMonitor that fills `phases`."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()
