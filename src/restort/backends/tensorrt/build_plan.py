"""Engines of RestoRT's own kernels: one node, the plugin RestortPass with the plan of a whole pass in it.

There is nothing that TensorRT could choose in one: no precision to hold layers to, nothing to time.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.backends.fused.aot_cache import PRECISIONS, Wanted
from restort.backends.fused.aot_package import read_plan
from restort.backends.tensorrt import network as networks
from restort.backends.tensorrt import plugin_library
from restort.backends.tensorrt.build import BuildOptions, Built, configure, run, starting
from restort.backends.tensorrt.gpu import gpu
from restort.backends.tensorrt.keys import Profile
from restort.backends.tensorrt.plan_graph import plan_graph
from restort.backends.tensorrt.report import report_of, warnings
from restort.errors import RestortError, UsageError

if TYPE_CHECKING:
    from restort.backends.tensorrt.flavour import Flavour
    from restort.weights.checkpoint import Weights

SEARCH = ("level", "constraints", "static")
"""Fields of BuildOptions about choices that TensorRT does not have here."""


def check_fused(flavour: Flavour, options: BuildOptions) -> None:
    """UsageError for options that make no sense where the kernels are RestoRT's own."""
    plugin_library.check_flavour(flavour)
    if options.precision not in PRECISIONS:
        raise UsageError(
            f"--kernels fused computes in {' or '.join(PRECISIONS)}, not {options.precision}; choose another "
            "--precision, or leave --kernels out"
        )
    if options.compute_capabilities:
        raise UsageError(
            "--kernels fused builds for the GPU of this machine alone; leave --compute-capability out (a plan for "
            "another GPU is made by `restort export --format plan`)"
        )
    if not options.profile.is_fixed:
        raise UsageError(
            f"--kernels fused is for one size, not {options.profile}; give one with --shape BxHxW, such as --shape "
            f"{'x'.join(map(str, options.profile.opt))}, or leave --kernels out"
        )
    for name in SEARCH:
        if getattr(options, name) is not None:
            raise UsageError(
                f"with --kernels fused TensorRT chooses no kernels; leave --{name} out, or --kernels"
            )
    if gpu() is None:
        raise UsageError(
            f"this machine has no NVIDIA GPU that {flavour.title} could build for; build where the GPU is, with a plan "
            "that `restort export --format plan` makes anywhere"
        )


def wanted_plan(weights: Weights, precision: str, profile: Profile, capability: str) -> Wanted:
    """The plan that an engine of that profile, on a GPU of compute capability '9.0', holds.

    Raises UsageError for a size that the network does not take.
    """
    networks.check_profile((-1, weights.spec.in_channels, -1, -1), profile, weights.spec.size_multiple)
    return Wanted(weights, precision, profile.opt, round(10 * float(capability)))


def build_plan(flavour: Flavour, weights: Weights, plan: Path, options: BuildOptions) -> Built:
    """An engine of the file `plan`, a plan of `weights`.

    Raises UsageError for options that make no sense here, RestortError where there is no plugin, the plan is none of
    these weights, or the builder fails.
    """
    check_fused(flavour, options)
    plugin_library.load(flavour)
    model = plan_graph(weights, plan)
    shape = networks.input_shape(model)
    networks.check_profile(shape, options.profile, weights.spec.size_multiple)
    data: bytes = model.SerializeToString(deterministic=True)
    start = time.perf_counter()
    with flavour.log.listening() as heard:
        builder = starting(flavour, heard)
        network, parser = networks.parse(flavour, builder, data)
        config = builder.create_builder_config()
        flags = configure(flavour, config, options, weights.spec.architecture)
        networks.add_profile(flavour, builder, config, network, shape[1], options.profile)
        made = run(flavour, builder, network, config, options.progress, heard)
        seconds = time.perf_counter() - start
        del parser
    here = gpu()
    report = report_of(flavour, options, model, data, made, here)
    report |= {
        "seconds": round(seconds, 2),
        "kernels": "fused",
        "plan": about_plan(plan),
        "keep_fp32": [],
        "flags": flags | {"kernels": "fused", "static": True},
        "layers": {"source": "plugin", plugin_library.NAME: 1},
        "warnings": warnings(heard),
    }
    return Built(made, report)


def about_plan(path: Path) -> dict[str, Any]:
    """What a sidecar says of the plan in its engine; `memory` is bytes on the GPU: of the weights, and of what each
    execution context has of its own."""
    data = path.read_bytes()
    plan = read_plan(data)
    names = ("restort", "sources", "compilers")
    weights = sum(region.size for region in plan.regions if region.kind == "weights")
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "compute_capability": f"{plan.capability / 10}",
        **{name: plan.text.get(name) for name in names},
        "kernels": len(plan.kernels),
        "launches": len(plan.launches),
        "memory": {"weights": weights, "context": plan.memory - weights},
        "plugin_sha256": plugin_library.digest(),
    }


def is_fused(about: dict[str, Any]) -> bool:
    """Whether the engine of this sidecar holds the plugin."""
    return about.get("kernels") == "fused"


def ready(flavour: Flavour, about: dict[str, Any]) -> None:
    """Loads the plugin where the engine of this sidecar needs it; RestortError where it is not to be had."""
    if not is_fused(about):
        return
    try:
        plugin_library.load(flavour)
    except RestortError as error:
        raise type(error)(f"this engine needs the plugin {plugin_library.NAME}: {error}") from None
