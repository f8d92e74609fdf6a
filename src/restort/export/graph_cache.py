"""ONNX graphs in the cache folder, emitted from the weights on first use.

A file ends with its own SHA-256, as one more entry of the model's metadata: protobuf merges what is appended. One
flipped bit in the weights of a graph would otherwise give another picture without a word.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from restort.errors import RestortError
from restort.export.emit import EMITTER, emit
from restort.export.form import Norm
from restort.export.graph import Precision
from restort.models.spec import RestormerSpec
from restort.utils.cache_dir import cache_root, distrusted
from restort.utils.files import write_bytes

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

LARGEST = 2**31 - 1  # bytes of one protobuf message
_DIGEST = "restort.graph_sha256"
_log = logging.getLogger("restort")


def graph_path(weights: Weights, precision: Precision = "fp32", *, norm: Norm = "layer") -> Path:
    """Return the file of `emit(weights, precision, norm=norm)` in the cache; emit it if it is absent or damaged.

    Several processes may ask at once: each writes a temporary file, and the last rename wins, with equal bytes. The
    file's name holds the digest of the weights, the options and the version of the emitter, so no file is ever
    outdated. A graph that others can have written is made anew. Where the cache cannot be written, the file lies in a
    temporary folder until the process ends. Raises RestortError where that cannot be written either.
    """
    form = f"-{norm}" if isinstance(weights.spec, RestormerSpec) and norm != "layer" else ""
    path = cache_root() / "graphs" / f"{weights.digest[:16]}-{precision}{form}-{EMITTER}.onnx"
    if _is_whole(path, weights.digest):
        return path
    data = _serialize(emit(weights, precision, norm=norm))
    try:
        write_bytes(path, data, overwrite=True, private=True)
    except RestortError as error:
        path = Path(_temporary_folder().name, path.name)
        _log.warning(
            "%s; the graph is made again in every run until RESTORT_CACHE names another folder", error
        )
        try:
            write_bytes(path, data, overwrite=True)
        except RestortError as second:
            raise RestortError(f"{second}; set RESTORT_CACHE to a folder that can be written") from None
    return path


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="restort-graphs-")


def _serialize(model: onnx.ModelProto) -> bytes:
    if model.ByteSize() + len(_seal(b"")) > LARGEST:
        raise RestortError("the graph exceeds 2 GiB, the limit of one ONNX file; use --precision fp16")
    data: bytes = model.SerializeToString(deterministic=True)
    return data + _seal(data)


def _seal(data: bytes) -> bytes:
    """The entry of metadata with the SHA-256 of `data`, of fixed length."""
    entry = onnx.StringStringEntryProto(key=_DIGEST, value=hashlib.sha256(data).hexdigest())
    seal: bytes = onnx.ModelProto(metadata_props=[entry]).SerializeToString()
    return seal


def _is_whole(path: Path, digest: str) -> bool:
    """Return whether `path` holds the unchanged graph of these weights, and nobody else can have written it."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    end = len(data) - len(_seal(b""))
    if end <= 0 or data[end:] != _seal(data[:end]):
        return False
    if (why := distrusted(path)) is not None:
        _log.warning("the graph %s is not used: %s; it is made again", path, why)
        return False
    return f"restort.weights_sha256\x12@{digest}".encode() in data[:end]
