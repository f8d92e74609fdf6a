"""From a graph to an engine: one `build` for every flavour of TensorRT.

Where the library takes types from the graph (TensorRT 10, 11, RTX) the network is strongly typed, and the graph is all
there is to say. TensorRT 8.6 cannot: there the same float16 graph is built with the FP16 flag, and every layer is held
to its type in the graph (OBEY_PRECISION_CONSTRAINTS). The other way, a float32 graph with that flag, would leave the
choice of precision to the builder's timing, except for layers picked out by name.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import onnx

from restort.backends.tensorrt import inspect
from restort.backends.tensorrt import network as networks
from restort.backends.tensorrt.flavour import Flavour
from restort.backends.tensorrt.gpu import gpu
from restort.backends.tensorrt.keys import Profile
from restort.backends.tensorrt.log import Heard
from restort.backends.tensorrt.progress import Phases, Progress, monitor
from restort.backends.tensorrt.report import report_of, warnings
from restort.errors import RestortError, UsageError
from restort.export import typed
from restort.export.fixed import with_fixed_input

WEAKLY_TYPED: dict[str, dict[str, Any]] = {
    "elan": {"fp16": "all", "mixed": "all", "typed": "all", "level": None, "static": False},
    "restormer": {"fp16": "pinned", "mixed": "pinned", "typed": "wide", "level": 0, "static": True},
}
"""What a library without types is told where nothing else is asked for, by architecture: constraints in a precision
and for graphs that have types of their own, level, and whether sizes are fixed in the graph;
`restort.export.form.WEAKLY_TYPED` is its graph. With all layers held TensorRT 8.6 finds no kernel for a Restormer
("Mismatched type for tensor"); with only the float32 ones held it computes some of its float16 convolutions in
float32; above level 0 a build takes over 330 s."""

MOST_THREADS = 16  # more do not make a build faster, and each takes memory
KERNELS = ("tensorrt", "fused")
NOT_IN_KEYS = ("threads",)
"""Options that say how an engine is built and not what it is."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    profile                 sizes the engine takes, and the one it is fastest at, as (B, H, W).
    precision               'fp32', 'tf32', 'fp16', 'bf16' or 'mixed'; the graph must be of it. In 'fp16' and 'bf16'
                            engines TF32 is on: what is float32 in them are products of 16-bit values, which TF32
                            holds exactly. In 'fp32' and 'mixed' it is off: there float32 is meant.
    compute_capabilities    GPUs to build for, as '8.6'; only RTX can, and needs none of them to be here.
    level                   how hard to search, 0 to 5; None for the library's own choice (3).
    workspace               bytes the engine may use for itself; None for no limit, which is advised: a limit below
                            what its activations need makes the build fail.
    timing_cache            what earlier builds measured, or None.
    constraints             for libraries without types: hold 'all' layers to the graph's, only the float32 ones
                            ('wide'), or 'none'; or 'pinned', for a float32 graph: convolutions float16, norms,
                            scores and sections to be kept float32, the others as the builder likes. None for the
                            best that is known.
    static                  writes a fixed size into the graph, whose arithmetic of sizes then is done when it is read
                            (of the layers of a Restormer that is two fifths); None for what is best known.
    threads                 of the processor that build, where that can be set; None for as many as there are.
    kernels                 'tensorrt' for those that the library chooses; 'fused' for RestoRT's own, compiled ahead for
                            one size (restort.backends.tensorrt.build_plan).
    progress                told of phases and the share that is done; may raise, which ends the build.
    """

    profile: Profile
    precision: str = "fp32"
    compute_capabilities: tuple[str, ...] = ()
    level: int | None = None
    workspace: int | None = None
    timing_cache: bytes | None = None
    constraints: Literal["all", "wide", "none", "pinned"] | None = None
    static: bool | None = None
    threads: int | None = None
    kernels: str = "tensorrt"
    progress: Progress | None = None


@dataclass(frozen=True)
class Built:
    """An engine, its report (the sidecar's content), and the timing cache with this build's times in it."""

    plan: bytes
    report: dict[str, Any]
    timing_cache: bytes | None = None


def build(flavour: Flavour, graph: onnx.ModelProto | bytes, options: BuildOptions) -> Built:
    """An engine of `graph`, one picture (N, C, H, W) in and one out.

    Raises UsageError for options that the library or the graph does not have; RestortError where the graph is not of
    the precision that is wanted (the layers are named), the builder fails, or the engine turns out to compute in
    another precision.
    """
    check_options(flavour, options)
    constraints: str | None = None
    model = typed.with_float32_ports(onnx.load_from_string(graph) if isinstance(graph, bytes) else graph)
    shape = networks.input_shape(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    networks.check_profile(shape, options.profile, int(about.get("restort.size_multiple", 1)))
    architecture = about.get("restort.architecture", "")
    asked: str | None = options.constraints
    if asked is None and "float16" in typed.convolutions(model).values():  # it has types of its own
        asked = _usual(architecture)["typed"]
    wanted = graph_precision(flavour, options.precision, asked, architecture)
    if options.precision == "mixed" and "restort.keep_fp32" not in about:
        wanted = "mixed"  # nobody chose what stays in float32: only a graph with types of its own says it
    kinds = typed.check_precision(model, wanted)
    static = _is_static(flavour, options, architecture)
    if static:
        model = with_fixed_input(model, (options.profile.opt[0], shape[1], *options.profile.opt[1:]))
    data: bytes = model.SerializeToString(deterministic=True)

    start = time.perf_counter()
    with flavour.log.listening() as heard:
        builder = starting(flavour, heard)
        network, parser = networks.parse(flavour, builder, data)
        config = builder.create_builder_config()
        flags = configure(flavour, config, options, architecture)
        flags["static"] = static
        flags["threads"] = _set_threads(builder, options.threads)
        networks.add_profile(flavour, builder, config, network, shape[1], options.profile)
        if not flavour.capabilities.strongly_typed and options.precision in ("fp16", "mixed"):
            constraints = _constraints(options.precision, asked, architecture)
            flags["constraints"] = constraints
            flags["constrained_layers"] = _constrain(flavour, network, config, model, constraints)
        plan = run(flavour, builder, network, config, options.progress, heard)
        seconds = time.perf_counter() - start
        counts = networks.layer_types(flavour.module, network)
        timings = _timings(flavour, config)
        del parser
    here = gpu()
    report = report_of(flavour, options, model, data, plan, here)
    report |= {
        "seconds": round(seconds, 2),
        "keep_fp32": [name for name in about.get("restort.keep_fp32", "").split(",") if name],
        "flags": flags,
        "layers": {"source": "network"} | counts,
        "warnings": warnings(heard),
    }
    if here is not None and (
        not options.compute_capabilities or here.compute_capability in report["targets"]
    ):
        layers, why = inspect.told(flavour, inspect.opened(flavour, plan))
        if why:
            report["unchecked"] = why
        if layers:
            inspect.check(options.precision, layers, lowered(model, kinds, constraints))
            report["layers"] = {"source": "engine"} | inspect.output_types(layers)
    return Built(plan, report, timings)


def starting(flavour: Flavour, heard: Heard) -> Any:
    """The library's builder. Raises RestortError where there is none."""
    try:
        return flavour.module.Builder(flavour.log.logger)
    except TypeError:  # what pybind11 makes of a null pointer, such as without a GPU
        raise heard.error("starting the builder") from None


def lowered(model: onnx.ModelProto, kinds: dict[str, str], constraints: str | None) -> set[str]:
    """The convolutions, of these types in the graph, that an engine must not compute in float32."""
    low = {name for name, kind in kinds.items() if kind != "float32" or constraints == "pinned"}
    return low - typed.kept(model)


def graph_precision(flavour: Flavour, precision: str, constraints: str | None, architecture: str = "") -> str:
    """The precision that the graph of an engine of `precision` must have: another one where layers are pinned."""
    weak = not flavour.capabilities.strongly_typed and precision in ("fp16", "mixed")
    return "fp32" if weak and _constraints(precision, constraints, architecture) == "pinned" else precision


def _usual(architecture: str) -> dict[str, Any]:
    return WEAKLY_TYPED.get(architecture, WEAKLY_TYPED["elan"])


def _constraints(precision: str, asked: str | None, architecture: str) -> str:
    """How a weakly typed library is held to types."""
    found: str = asked or _usual(architecture)[precision]
    return found


def check_options(flavour: Flavour, options: BuildOptions) -> None:
    """UsageError where the library has not what `options` ask for."""
    if options.kernels not in KERNELS:
        raise UsageError(
            f"there are no kernels {options.kernels!r} for an engine; choose {', '.join(KERNELS)}"
        )
    if options.kernels == "fused":
        from restort.backends.tensorrt.build_plan import check_fused

        check_fused(flavour, options)
        return
    if options.precision not in typed.PRECISIONS:
        raise UsageError(
            f"there is no precision {options.precision!r} for an engine; choose {', '.join(typed.PRECISIONS)}"
        )
    if options.precision not in flavour.precisions:
        raise UsageError(
            f"{flavour.title} has no {options.precision}; choose {', '.join(flavour.precisions)}"
        )
    targets = flavour.targets()
    for capability in options.compute_capabilities:
        if not targets:
            raise UsageError(
                f"{flavour.title} builds for the GPU of this machine alone; leave --compute-capability out, or use "
                "--flavour rtx"
            )
        if capability not in targets:
            raise UsageError(
                f"{flavour.title} does not build for compute capability {capability}; it does for {', '.join(targets)}"
            )
    if not options.compute_capabilities:
        here = gpu()
        if here is None:
            ways = f"name those to build for, with --compute-capability {targets[-2]}" if targets else ""
            other = "build where the GPU is, or for a later machine with --flavour rtx --compute-capability"
            raise UsageError(
                f"this machine has no NVIDIA GPU that {flavour.title} could build for; {ways or other}"
            )
        if targets and here.compute_capability not in targets:
            raise UsageError(
                f"{flavour.title} does not run on {here.name} (compute capability {here.compute_capability}); use "
                "--flavour tensorrt, or name others with --compute-capability"
            )
    if options.level is not None and not 0 <= options.level <= 5:
        raise UsageError(f"--level goes from 0 to 5, not {options.level}")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"a build takes at least one thread, not {options.threads}")


def configure(flavour: Flavour, config: Any, options: BuildOptions, architecture: str) -> dict[str, Any]:
    """Sets everything but the profile; what was set, for the report."""
    module, can = flavour.module, flavour.capabilities
    level = options.level
    if level is None and can.levels and not can.strongly_typed:
        level = _usual(architecture)["level"]
    flags: dict[str, Any] = {
        "strongly_typed": can.strongly_typed,
        "tf32": options.precision not in ("fp32", "mixed"),
        "level": level,
        "workspace": options.workspace,
    }
    set_tf32 = config.set_flag if flags["tf32"] else config.clear_flag
    set_tf32(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if level is not None:
        if not can.levels:
            raise UsageError(f"{flavour.title} has no levels; leave --level out")
        config.builder_optimization_level = level
    if options.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace)
    if can.tactic_sources:  # so that engines need neither cuBLAS nor cuDNN where they run
        own = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        sources = [getattr(module.TacticSource, name) for name in own if hasattr(module.TacticSource, name)]
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
        flags["tactic_sources"] = [source.name for source in sources]
    sharing = getattr(getattr(module, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if (
        sharing is not None and not options.profile.is_fixed
    ):  # a context per shape, all of one profile; usual since 10
        config.set_preview_feature(sharing, True)
        flags["profile_sharing"] = True
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            target = getattr(module.ComputeCapability, f"SM{capability.replace('.', '')}")
            if not config.set_compute_capability(target, i):
                raise RestortError(f"{flavour.title} refuses to build for compute capability {capability}")
    if can.timing_cache:
        kept = config.create_timing_cache(options.timing_cache or b"")
        if kept is None or not config.set_timing_cache(kept, False):  # of another GPU or version
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return flags


def wants_one_size(flavour: Flavour, architecture: str) -> bool:
    """Whether engines of that network are best built for one size each: with others, a build takes too long."""
    return not flavour.capabilities.strongly_typed and bool(_usual(architecture)["static"])


def _is_static(flavour: Flavour, options: BuildOptions, architecture: str) -> bool:
    usual = wants_one_size(flavour, architecture)
    return options.profile.is_fixed and (usual if options.static is None else bool(options.static))


def _set_threads(builder: Any, threads: int | None) -> int | None:
    """How many threads may build: what was set, None where the library decides by itself."""
    if not hasattr(builder, "max_threads"):
        return None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    builder.max_threads = count = threads or min(usable, MOST_THREADS)
    return count


def _constrain(flavour: Flavour, network: Any, config: Any, model: onnx.ModelProto, constraints: str) -> int:
    """Lets a weakly typed builder use float16, and holds it to the types of the graph; how many layers."""
    flag = flavour.module.BuilderFlag
    config.set_flag(flag.FP16)
    if constraints == "none":
        return 0
    config.set_flag(flag.OBEY_PRECISION_CONSTRAINTS)
    if constraints == "pinned":
        return networks.pin(flavour, network, model)
    types = typed.tensor_types(model)
    return networks.constrain(flavour, network, types, everything=constraints == "all")


def run(
    flavour: Flavour, builder: Any, network: Any, config: Any, progress: Progress | None, heard: Heard
) -> bytes:
    """The plan. Raises RestortError where there is none, and whatever `progress` raised."""
    phases = Phases(progress or (lambda phase, share: None))
    if flavour.capabilities.progress:
        kept = monitor(flavour.module, phases)  # the config does not keep it alive
        config.progress_monitor = kept
    elif progress is not None:
        progress("Building engine", None)
    plan = builder.build_serialized_network(network, config)
    if phases.stopped is not None:
        raise phases.stopped
    if plan is None:
        raise heard.error("building the engine")
    return bytes(plan)


def _timings(flavour: Flavour, config: Any) -> bytes | None:
    cache = config.get_timing_cache() if flavour.capabilities.timing_cache else None
    return None if cache is None else bytes(cache.serialize())
