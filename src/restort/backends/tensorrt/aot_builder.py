"""Engines of RestoRT's own kernels: one node, the plugin RestortPass, with the AOT package of a forward pass in it.

TensorRT chooses nothing in such an engine: neither precisions nor kernels. The plugin's source is in csrc/.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from restort.backends.fused.aot_cache import PRECISIONS, AotRequest
from restort.backends.fused.aot_package import AotPackage, read_aot
from restort.backends.tensorrt import network as networks
from restort.backends.tensorrt import plugin
from restort.backends.tensorrt.builder import make_report, run_builder
from restort.backends.tensorrt.options import BuildOptions, Built, Profile
from restort.errors import RestortError, UsageError
from restort.utils.gpu import find_gpu
from restort.version import __version__

if TYPE_CHECKING:
    from restort.backends.tensorrt.library import Flavour
    from restort.weights.checkpoint import Weights

OPSET, IR_VERSION = 17, 8  # the newest that TensorRT 8.6 reads


def check_aot_options(flavour: Flavour, options: BuildOptions) -> None:
    """Raise UsageError where `options` do not fit an engine of RestoRT's own kernels."""
    plugin.check_flavour(flavour)
    if options.precision not in PRECISIONS:
        raise UsageError(
            f"--kernels fused does not support {options.precision}; choose {' or '.join(PRECISIONS)}, or leave "
            "--kernels out"
        )
    if options.compute_capabilities:
        raise UsageError(
            "--kernels fused builds only for the GPU of this machine; leave --compute-capability out (`restort export "
            "--format aot` makes an AOT package for another GPU)"
        )
    if not options.profile.is_fixed:
        raise UsageError(
            f"--kernels fused builds for one size, not {options.profile}; give one with --shape BxHxW, such as --shape "
            f"{'x'.join(map(str, options.profile.opt))}, or leave --kernels out"
        )
    if options.level is not None:
        raise UsageError(
            "with --kernels fused TensorRT does not choose kernels; leave --level out, or --kernels"
        )
    if find_gpu() is None:
        raise UsageError(
            f"no NVIDIA GPU found; {flavour.title} engines must be built on the target GPU, from an AOT package that "
            "`restort export --format aot` makes on any machine"
        )


def aot_request(weights: Weights, precision: str, profile: Profile, capability: str) -> AotRequest:
    """The AOT package that an engine of that profile needs, on a GPU of compute capability '9.0'.

    Raises UsageError for a size that the network does not take.
    """
    networks.check_profile((-1, weights.spec.in_channels, -1, -1), profile, weights.spec.size_multiple)
    return AotRequest(weights, precision, profile.opt, round(10 * float(capability)))


def build_aot_engine(flavour: Flavour, weights: Weights, package: Path, options: BuildOptions) -> Built:
    """Build an engine of the file `package`, an AOT package of `weights`.

    Raises UsageError for options that do not fit, RestortError where the plugin is unavailable, the package is of other
    weights, or the builder fails.
    """
    check_aot_options(flavour, options)
    plugin.load(flavour)
    model = aot_graph(weights, package, plugin.version_for(flavour))
    shape = networks.input_shape(model)
    networks.check_profile(shape, options.profile, weights.spec.size_multiple)
    data: bytes = model.SerializeToString(deterministic=True)
    outcome = run_builder(flavour, data, options, shape[1], weights.spec.architecture)
    report = make_report(flavour, options, model, data, outcome, find_gpu()) | {
        "kernels": "fused",
        "aot": package_report(package),
        "keep_fp32": [],
        "flags": outcome.flags | {"kernels": "fused", "static": True},
        "layers": {"source": "plugin", plugin.NAME: 1},
    }
    return Built(outcome.plan, report)


def package_report(path: Path) -> dict[str, Any]:
    """What a sidecar says of the AOT package in its engine.

    `memory` is in bytes on the GPU: of the weights, and of each execution context.
    """
    data = path.read_bytes()
    package = read_aot(data)
    names = ("restort", "sources", "compilers")
    weights = sum(region.size for region in package.regions if region.kind == "weights")
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "compute_capability": f"{package.capability / 10}",
        **{name: package.text.get(name) for name in names},
        "kernels": len(package.kernels),
        "launches": len(package.launches),
        "memory": {"weights": weights, "context": package.memory - weights},
        "plugin_sha256": plugin.digest(),
    }


def aot_graph(weights: Weights, package: bytes | Path | str, version: str = "1") -> onnx.ModelProto:
    """Make the graph of an AOT package of `weights`: one node, which TensorRT imports as the plugin RestortPass.

    package     its bytes, of which the graph holds a copy; or the path of its file, of which the graph holds the
                absolute path, so the file must stay there until the engine is built.
    version     of the plugin: '1' for TensorRT 8.6, '2' for 10 and 11.

    Input 'input' and output 'output' are float32 of the package's shapes. Raises RestortError for bytes that are not an
    AOT package, or one of other weights.
    """
    if isinstance(package, bytes):
        read, attribute = read_aot(package), package
    else:
        path = Path(package).resolve()
        try:
            read, attribute = read_aot(path.read_bytes()), f"file:{path}".encode()
        except OSError as error:
            raise RestortError(f"cannot read the AOT package {path}: {error.strerror}") from None
    if read.text.get("weights_sha256") != weights.digest:
        raise RestortError("the AOT package is of other weights; make it again from these")
    # TensorRT takes a node that names no version for version 1.
    named = {} if version == "1" else {"plugin_version": version, "plugin_namespace": ""}
    node = helper.make_node("RestortPass", ["input"], ["output"], name="pass", plan=attribute, **named)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", read.input), ("output", read.output))
    ]
    graph = helper.make_graph([node], weights.spec.architecture, ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="restort")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, _metadata(weights, read))
    return model


def _metadata(weights: Weights, package: AotPackage) -> dict[str, str]:
    """The metadata that restort.export.emit writes into graphs."""
    spec = weights.spec
    return {
        "restort.architecture": spec.architecture,
        "restort.scale": str(spec.scale),
        "restort.size_multiple": str(spec.size_multiple),
        "restort.precision": str(package.text.get("precision", "")),
        "restort.version": __version__,
        "restort.model": weights.metadata.get("name") or weights.path.stem,
        "restort.weights_sha256": weights.digest,
    }
