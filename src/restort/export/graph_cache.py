"""Graphs on disk: made from the weights on first use, kept, and written where the user asks."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from restort.errors import RestortError, UsageError
from restort.export.emit import EMITTER, emit
from restort.export.form import Norm
from restort.export.graph import Precision
from restort.models.spec import RestormerSpec
from restort.utils.cache_dir import cache_root

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

LARGEST = 2**31 - 1  # bytes of one protobuf message


def graph_path(weights: Weights, precision: Precision = "fp32", *, norm: Norm = "layer") -> Path:
    """The file of `emit(weights, precision, norm=norm)` in the cache, made if it is not there or damaged.

    Several processes may ask at once: each writes its own temporary file and the last rename wins, with the
    same bytes. The name holds the weights' digest, the options and the emitter's version, so that no file is
    ever outdated. Raises RestortError where the cache cannot be written.
    """
    form = f"-{norm}" if isinstance(weights.spec, RestormerSpec) and norm != "layer" else ""
    path = cache_root() / "graphs" / f"{weights.digest[:16]}-{precision}{form}-{EMITTER}.onnx"
    if not _is_whole(path, weights.digest):
        data = _serialize(emit(weights, precision, norm=norm))
        _write(path, data, f"the cache folder {path.parent} (set RESTORT_CACHE to another)")
    return path


def export_file(
    weights: Weights, target: Path | str, precision: Precision = "fp32", *, overwrite: bool = False
) -> Path:
    """Write the graph of `weights` to `target`, a .onnx file, after checking it with onnx.checker.

    Raises UsageError for a target of another suffix or one that exists (without `overwrite`), RestortError
    where it cannot be written.
    """
    target = Path(target)
    if target.suffix.lower() != ".onnx":
        raise UsageError(f"the export writes ONNX: give {target} a name that ends in .onnx")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name the .onnx file to write")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; choose another name or pass --overwrite")
    model = emit(weights, precision)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0]
        raise RestortError(
            f"{weights.path}: these weights give a graph that ONNX rejects ({reason})"
        ) from None
    _write(target, _serialize(model), str(target))
    return target


def _serialize(model: onnx.ModelProto) -> bytes:
    if model.ByteSize() > LARGEST:
        raise RestortError(
            "the graph is larger than 2 GiB, which one ONNX file cannot hold; use --precision fp16"
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _is_whole(path: Path, digest: str) -> bool:
    """Whether `path` holds a complete graph of these weights: a truncated or overwritten file does not parse."""
    try:
        model = onnx.load(path)
    except (
        Exception
    ):  # not there, or not readable: protobuf's own error types differ between its implementations
        return False
    kept = {entry.key: entry.value for entry in model.metadata_props}
    return kept.get("restort.weights_sha256") == digest


def _write(path: Path, data: bytes, place: str) -> None:
    """Write under a temporary name in the same folder, then rename."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RestortError(f"cannot write {place}: {error.strerror or error}") from None
