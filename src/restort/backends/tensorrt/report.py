"""What the sidecar of a new engine says, but for what only its build can know."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import onnx

import restort
from restort.backends.tensorrt import sidecar
from restort.backends.tensorrt.log import Heard, plain
from restort.export import typed

if TYPE_CHECKING:
    from restort.backends.tensorrt.build import BuildOptions
    from restort.backends.tensorrt.flavour import Flavour
    from restort.backends.tensorrt.gpu import Gpu


def report_of(
    flavour: Flavour,
    options: BuildOptions,
    model: onnx.ModelProto,
    data: bytes,
    plan: bytes,
    here: Gpu | None,
) -> dict[str, Any]:
    """The report of the engine `plan`, of the graph `model`, which the library was given as `data`, on the GPU `here`.

    Whoever built it adds `seconds`, `keep_fp32`, `flags`, `layers` and `warnings` (see this package's docstring).
    """
    about = {entry.key: entry.value for entry in model.metadata_props}
    return {
        "schema": sidecar.SCHEMA,
        "restort": restort.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "bytes": len(plan),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "flavour": flavour.name,
        "version": flavour.version,
        "targets": list(options.compute_capabilities) or ([here.compute_capability] if here else []),
        "gpu": here.to_json() if here else None,
        "graph": _graph(model, data),
        "model": _model(about),
        "profile": {name: list(getattr(options.profile, name)) for name in ("min", "opt", "max")},
        "precision": options.precision,
    }


def warnings(heard: Heard) -> list[str]:
    """What the library warned of, each once, at most 20."""
    return sorted(set(map(plain, heard.warnings())))[:20]


def _graph(model: onnx.ModelProto, data: bytes) -> dict[str, Any]:
    weights = {tensor.name for tensor in model.graph.initializer}

    def port(value: onnx.ValueInfoProto) -> dict[str, Any]:
        kind = value.type.tensor_type
        dims = [d.dim_value or d.dim_param or None for d in kind.shape.dim]
        return {"name": value.name, "dtype": typed.NAMES.get(kind.elem_type, "other"), "shape": dims}

    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "nodes": len(model.graph.node),
        "opset": next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None
        ),
        "inputs": [port(value) for value in model.graph.input if value.name not in weights],
        "outputs": [port(value) for value in model.graph.output],
    }


def _model(about: dict[str, str]) -> dict[str, Any] | None:
    if "restort.architecture" not in about:
        return None
    return {
        "name": about.get("restort.model", ""),
        "architecture": about["restort.architecture"],
        "scale": int(about.get("restort.scale", 1)),
        "size_multiple": int(about.get("restort.size_multiple", 1)),
        "weights_sha256": about.get("restort.weights_sha256", ""),
    }
