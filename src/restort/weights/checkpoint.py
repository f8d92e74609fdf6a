"""Weights from a file: safetensors or what torch.save writes, into NumPy arrays and a descriptor.

Neither PyTorch nor anything named in the file is imported or run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError
from restort.models import elan_names
from restort.models.spec import Spec, detect, parameter_shapes
from restort.weights.containers import find_state
from restort.weights.pickled import TensorRef
from restort.weights.torchfile import LegacyTorchFile, TorchFile, ZipTorchFile

Array = npt.NDArray[Any]

MAX_HEADER_BYTES = 100_000_000  # the limit that safetensors itself sets
_SAFETENSORS_TYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "u2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass
class Weights:
    """A network's weights and what network they are of.

    `state` has exactly the published names, in the published order: float32 (or the `dtype` asked for), but
    int64 for `num_batches_tracked`. `digest` is the SHA-256 (hex) of the file's bytes.
    """

    state: dict[str, Array]
    spec: Spec
    metadata: dict[str, str]
    digest: str
    path: Path


def load_weights(path: Path | str, *, dtype: npt.DTypeLike = np.float32) -> Weights:
    """Reads a Restormer's or an ELAN's weights from a .safetensors, .pth, .pt or .ckpt file.

    The format is recognised by content. Containers and prefixes are opened, the second ELAN naming scheme is
    translated, ELAN's fixed buffers are filled in where they are missing, and half-precision numbers become
    float32. `dtype` may be float64 for checks of accuracy.

    Raises RestortError, one sentence with the file's name: no such file, damaged, not weights, of another
    architecture, of impossible shapes, not finite, or a pickle that asks to run something.
    """
    path = Path(path)
    try:
        with _opened(path) as stream:
            digest, size = _digest(stream)
            stream.seek(0)
            state, metadata = _read(stream, size, np.dtype(dtype))
            spec = detect(state)
            _check_numbers(state)
    except RestortError as error:
        raise RestortError(f"{path}: {error}") from None
    except OSError as error:
        raise RestortError(f"{path}: the weights cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise RestortError(f"{path}: the weights do not fit into memory") from None
    order = [name for name in parameter_shapes(spec) if name in state]
    return Weights({name: state[name] for name in order}, spec, metadata, digest, path)


def _opened(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise RestortError("the weights are a folder; give a .safetensors or .pth file")
    if not path.exists():
        raise RestortError("there is no such file of weights; check the path")
    if not path.is_file():
        raise RestortError("the weights are not a regular file; give a .safetensors or .pth file")
    return path.open("rb")


def _digest(stream: IO[bytes]) -> tuple[str, int]:
    total, size = hashlib.sha256(), 0
    while block := stream.read(1 << 20):
        total.update(block)
        size += len(block)
    return total.hexdigest(), size


def _read(stream: IO[bytes], size: int, dtype: np.dtype[Any]) -> tuple[dict[str, Array], dict[str, str]]:
    head = stream.read(9)
    stream.seek(0)
    if not size:
        raise RestortError("the file is empty; fetch or copy it again")
    if head.startswith(b"PK"):
        return _from_torch(ZipTorchFile(stream, size), dtype), {}
    if head.startswith(b"\x80"):
        return _from_torch(LegacyTorchFile(stream, size), dtype), {}
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return _from_safetensors(stream, size, dtype)
    raise RestortError(
        "it is neither a .safetensors file nor one written by torch.save; give a file of weights"
    )


def prepared(state: dict[str, Any]) -> dict[str, Any]:
    """Published names, fixed buffers filled in, and the architecture checked, before any numbers are read."""
    if elan_names.is_elan(state):
        state = elan_names.published_names(state)
        elan_names.add_fixed_buffers(state)
    detect(state)
    return state


def _from_torch(file: TorchFile, dtype: np.dtype[Any]) -> dict[str, Array]:
    state = prepared(find_state(file.content, lambda value: isinstance(value, TensorRef)))
    return {
        name: _cast(file.array(value) if isinstance(value, TensorRef) else value, name, dtype)
        for name, value in state.items()
    }


def _from_safetensors(
    stream: IO[bytes], size: int, dtype: np.dtype[Any]
) -> tuple[dict[str, Array], dict[str, str]]:
    from safetensors import SafetensorError, deserialize

    data = stream.read()
    try:
        tensors = {name: _decode(entry) for name, entry in deserialize(data)}  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        reason = str(error).rpartition(": ")[2][:80]
        raise RestortError(
            f"it is a truncated or damaged .safetensors file ({reason}); fetch it again"
        ) from None
    state = prepared(find_state(tensors, lambda value: isinstance(value, np.ndarray)))
    return {name: _cast(value, name, dtype) for name, value in state.items()}, _metadata(data)


def _decode(entry: Mapping[str, Any]) -> Array:
    """One tensor as safetensors describes it: {"dtype", "shape", "data"}, little-endian."""
    kind = _SAFETENSORS_TYPES.get(entry["dtype"])
    if kind is None:
        raise RestortError(f"it holds a tensor of the unsupported type {entry['dtype']}")
    flat: Array = np.frombuffer(entry["data"], dtype=np.dtype(kind).newbyteorder("<"))
    if entry["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return np.reshape(flat, entry["shape"])


def _metadata(data: bytes) -> dict[str, str]:
    """The free text in the header (the library gives it only for files named by a path)."""
    import json

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {str(key): str(value) for key, value in (header.get("__metadata__") or {}).items()}


def _cast(value: Array, name: str, dtype: np.dtype[Any]) -> Array:
    if name.endswith("num_batches_tracked"):
        return value.astype(np.int64)
    if value.dtype.kind != "f":
        raise RestortError(f"the parameter {name} holds {value.dtype} numbers; weights are floating-point")
    with np.errstate(over="ignore", invalid="ignore"):  # _check_numbers speaks of what does not fit
        return np.ascontiguousarray(value, dtype=dtype).reshape(value.shape)


def _check_numbers(state: Mapping[str, Array]) -> None:
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise RestortError(
                f"the parameter {name} holds NaN or infinite numbers; the training or the file failed"
            )
    elan_names.check_shifts(state)
