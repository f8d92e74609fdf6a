"""ONNX graphs in the cache folder, emitted from the weights on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from restort.errors import RestortError
from restort.export.emit import EMITTER, emit
from restort.export.form import Norm
from restort.export.graph import Precision
from restort.models.spec import RestormerSpec
from restort.utils.cache_dir import cache_root
from restort.utils.files import write_bytes

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

LARGEST = 2**31 - 1  # bytes of one protobuf message


def graph_path(weights: Weights, precision: Precision = "fp32", *, norm: Norm = "layer") -> Path:
    """Return the file of `emit(weights, precision, norm=norm)` in the cache; emit it if it is absent or damaged.

    Several processes may ask at once: each writes a temporary file, and the last rename wins, with equal bytes. The
    file's name holds the digest of the weights, the options and the version of the emitter, so no file is ever
    outdated. Raises RestortError where the cache cannot be written.
    """
    form = f"-{norm}" if isinstance(weights.spec, RestormerSpec) and norm != "layer" else ""
    path = cache_root() / "graphs" / f"{weights.digest[:16]}-{precision}{form}-{EMITTER}.onnx"
    if not _is_whole(path, weights.digest):
        try:
            write_bytes(path, _serialize(emit(weights, precision, norm=norm)), overwrite=True)
        except RestortError as error:
            raise RestortError(f"{error}; set RESTORT_CACHE to another folder") from None
    return path


def _serialize(model: onnx.ModelProto) -> bytes:
    if model.ByteSize() > LARGEST:
        raise RestortError("the graph exceeds 2 GiB, the limit of one ONNX file; use --precision fp16")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _is_whole(path: Path, digest: str) -> bool:
    """Whether `path` holds a complete graph of these weights; a truncated or overwritten file does not parse."""
    try:
        model = onnx.load(path)
    except Exception:  # absent or unreadable; the error types of protobuf differ between its implementations
        return False
    kept = {entry.key: entry.value for entry in model.metadata_props}
    return kept.get("restort.weights_sha256") == digest
