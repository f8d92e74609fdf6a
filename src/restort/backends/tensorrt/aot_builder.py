"""Engines of RestoRT's own kernels: one node, the plugin RestortPass, with the AOT package of a forward pass in it.

TensorRT chooses nothing in such an engine: neither precisions nor kernels. The plugin's source is in csrc/.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from restort.backends.fused.aot_cache import PRECISIONS, AotRequest
from restort.backends.fused.aot_package import AotPackage, Shape, join_aot, split_aot
from restort.backends.tensorrt import network as networks
from restort.backends.tensorrt import plugin
from restort.backends.tensorrt.builder import make_report, run_builder
from restort.backends.tensorrt.options import BuildOptions, Built, Profile
from restort.errors import RestortError, UsageError
from restort.utils.files import read_bytes
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
    if not options.profile.sizes:
        raise UsageError(
            f"--kernels fused builds for single sizes, not {options.profile}; give them with --shape BxHxW, such as "
            f"--shape {'x'.join(map(str, options.profile.opt))}, or leave --kernels out"
        )
    if options.version_compatible:
        raise UsageError(
            "--version-compatible is only for TensorRT's kernels; leave it out, or --kernels fused"
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


def aot_requests(weights: Weights, precision: str, profile: Profile, capability: str) -> list[AotRequest]:
    """The AOT packages that an engine of that profile needs, one a size, on a GPU of compute capability '9.0'.

    Raises UsageError for a size that the network does not take.
    """
    networks.check_profile((-1, weights.spec.in_channels, -1, -1), profile, weights.spec.size_multiple)
    return [AotRequest(weights, precision, size, round(10 * float(capability))) for size in profile.sizes]


def joined(packages: Sequence[Path]) -> bytes:
    """The bytes of the only one of some files of AOT packages, or of all in one."""
    files = [read_bytes(path) for path in packages]
    return files[0] if len(files) == 1 else join_aot(files)


def build_aot_engine(
    flavour: Flavour, weights: Weights, packages: Sequence[Path], options: BuildOptions
) -> Built:
    """Build an engine of files with AOT packages of `weights`, one for each size of the profile.

    Raises UsageError for options that do not fit, RestortError where the plugin is unavailable, the package is of other
    weights, or the builder fails.
    """
    check_aot_options(flavour, options)
    plugin.load(flavour)
    content = joined(packages)
    with tempfile.TemporaryDirectory() as folder:
        path = packages[0]
        if len(packages) > 1:
            path = Path(folder) / "pass.rtaot"
            path.write_bytes(content)
        model = aot_graph(weights, path, plugin.version_for(flavour))
        shape = networks.input_shape(model)
        networks.check_profile(shape, options.profile, weights.spec.size_multiple)
        data: bytes = model.SerializeToString(deterministic=True)
        outcome = run_builder(flavour, data, options, shape[1], weights.spec.architecture)
    report = make_report(flavour, options, model, data, outcome, find_gpu()) | {
        "kernels": "fused",
        "aot": package_report(content),
        "keep_fp32": [],
        "flags": outcome.flags | {"kernels": "fused", "static": options.profile.is_fixed},
        "layers": {"source": "plugin", plugin.NAME: 1},
    }
    return Built(outcome.plan, report)


def package_report(data: bytes) -> dict[str, Any]:
    """What a sidecar says of the AOT packages in its engine.

    `memory` is in bytes on the GPU: of the weights, and of each execution context, at most.
    """
    packages = split_aot(data)
    first = packages[0]
    names = ("restort", "sources", "compilers")
    weights = [sum(r.size for r in p.regions if r.kind == "weights" and not r.shared) for p in packages]
    all_weights = [sum(r.size for r in p.regions if r.kind == "weights") for p in packages]
    contexts = [package.memory - size for package, size in zip(packages, all_weights)]
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "compute_capability": f"{first.capability / 10}",
        **{name: first.text.get(name) for name in names},
        "kernels": sum(len(package.kernels) for package in packages),
        "launches": max(len(package.launches) for package in packages),
        "memory": {"weights": sum(weights), "context": max(contexts)},
        "plugin_sha256": plugin.digest(),
    }


def aot_graph(weights: Weights, package: bytes | Path | str, version: str = "1") -> onnx.ModelProto:
    """Make the graph of an AOT package of `weights`: one node, which TensorRT imports as the plugin RestortPass.

    package     its bytes, of which the graph holds a copy; or the path of its file, of which the graph holds the
                absolute path, so the file must stay there until the engine is built. It may hold several sizes
                (restort.backends.fused.aot_package.join_aot); those that differ have names instead of numbers.
    version     of the plugin: '1' for TensorRT 8.6, '2' for 10 and 11.

    Input 'input' and output 'output' are float32 of the package's shapes. Raises RestortError for bytes that are not an
    AOT package, or one of other weights.
    """
    if isinstance(package, bytes):
        read, attribute = split_aot(package), package
    else:
        path = Path(package).resolve()
        try:
            read, attribute = split_aot(path.read_bytes()), f"file:{path}".encode()
        except OSError as error:
            raise RestortError(f"cannot read the AOT package {path}: {error.strerror}") from None
    if any(one.text.get("weights_sha256") != weights.digest for one in read):
        raise RestortError("the AOT package is of other weights; make it again from these")
    # TensorRT takes a node that names no version for version 1.
    named = {} if version == "1" else {"plugin_version": version, "plugin_namespace": ""}
    node = helper.make_node("RestortPass", ["input"], ["output"], name="pass", plan=attribute, **named)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, _extents(name, shapes))
        for name, shapes in (("input", [one.input for one in read]), ("output", [one.output for one in read]))
    ]
    graph = helper.make_graph([node], weights.spec.architecture, ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="restort")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, _metadata(weights, read[0]))
    return model


def _extents(port: str, shapes: list[Shape]) -> list[int | str]:
    """The extent of each axis: a number where all shapes agree, else a name."""
    names = (f"{port}_{axis}" for axis in ("batch", "channels", "height", "width"))
    return [sizes[0] if len({*sizes}) == 1 else name for name, sizes in zip(names, zip(*shapes))]


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
