"""Weights from a .safetensors file or one of torch.save, as NumPy arrays and a descriptor of the network.

Neither PyTorch nor anything the file names is imported or run.
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
from restort.weights.state_dict import find_state
from restort.weights.torch_file import LegacyTorchFile, TorchFile, ZipTorchFile, is_array_ref

Array = npt.NDArray[Any]

MAX_SAFETENSORS_HEADER = 100_000_000  # what the format allows; a million entries would take half a minute
MAX_HEADER_BYTES = 16 << 20  # what is read; the header of a full-size Restormer has 60 kB
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
    """A network's weights, with the descriptor of the network.

    state      arrays under exactly the published names, in the published order: float32 (or the `dtype` given to
               `load_weights`), int64 for `num_batches_tracked`
    metadata   the free text of a .safetensors header; {} for other files
    digest     SHA-256 (hex) of the file's bytes
    note       a sentence for the user where the file held several sets of weights, such as averaged ones
    """

    state: dict[str, Array]
    spec: Spec
    metadata: dict[str, str]
    digest: str
    path: Path
    note: str | None = None


def load_weights(path: Path | str, *, dtype: npt.DTypeLike = np.float32) -> Weights:
    """Read a Restormer's or an ELAN's weights from a .safetensors, .pth, .pt or .ckpt file.

    Recognises the format by content, opens containers, removes prefixes, prefers averaged weights, translates the
    second ELAN naming scheme, adds ELAN's fixed buffers where they are missing, and converts half-precision numbers
    to `dtype`: float32, or float64 for checks of accuracy.

    Raises RestortError, one sentence that begins with the path: no such file, damaged, no weights, another
    architecture, impossible shapes, NaN or infinity, or a pickle that asks to run something.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            digest, size = _digest(stream)
            stream.seek(0)
            state, metadata, note = _read(stream, size, np.dtype(dtype))
            spec = detect(state)
            _check_numbers(state)
    except RestortError as error:
        raise RestortError(f"{path}: {error}") from None
    except OSError as error:
        raise RestortError(
            f"{path}: cannot be read ({error.strerror or error}); check the file's permissions"
        ) from None
    except MemoryError:
        raise RestortError(
            f"{path}: too large for the free memory; close other programs or use a machine with more"
        ) from None
    order = [name for name in parameter_shapes(spec) if name in state]
    return Weights({name: state[name] for name in order}, spec, metadata, digest, path, note)


def weights_from_state(state: Mapping[str, Array], name: str) -> Weights:
    """Return the weights of a state dict in memory, which may have a prefix such as `module.`; `name` is for messages.

    state   parameters and buffers by name, floating-point or integer arrays; the numbers become float32.

    Raises RestortError as `load_weights` does.
    """
    try:
        found = prepared(find_state(dict(state), lambda value: isinstance(value, np.ndarray)).state)
        arrays = {key: _cast(value, key, np.dtype(np.float32)) for key, value in found.items()}
        spec = detect(arrays)
        _check_numbers(arrays)
    except RestortError as error:
        raise RestortError(f"{name}: {error}") from None
    digest, order = hashlib.sha256(), [key for key in parameter_shapes(spec) if key in arrays]
    for key in order:
        digest.update(key.encode() + b"\0" + arrays[key].tobytes())
    return Weights({key: arrays[key] for key in order}, spec, {}, digest.hexdigest(), Path(name))


def _open(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise RestortError("this is a folder; give a .safetensors or .pth file")
    if not path.exists():
        raise RestortError("no such file; check the path")
    if not path.is_file():
        raise RestortError("not a regular file; give a .safetensors or .pth file")
    return path.open("rb")


def _digest(stream: IO[bytes]) -> tuple[str, int]:
    total, size = hashlib.sha256(), 0
    while block := stream.read(1 << 20):
        total.update(block)
        size += len(block)
    return total.hexdigest(), size


Content = tuple[dict[str, Array], dict[str, str], "str | None"]  # state, metadata, note


def _read(stream: IO[bytes], size: int, dtype: np.dtype[Any]) -> Content:
    head = stream.read(9)
    stream.seek(0)
    if not size:
        raise RestortError("the file is empty; download or copy it again")
    if head.startswith(b"PK"):
        return _from_torch(ZipTorchFile(stream, size), dtype)
    if head.startswith(b"\x80"):
        return _from_torch(LegacyTorchFile(stream, size), dtype)
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= MAX_SAFETENSORS_HEADER:
        if header > MAX_HEADER_BYTES:
            raise RestortError(
                f"damaged .safetensors file (its header claims {header:,} bytes, more than {MAX_HEADER_BYTES:,}); "
                "download or copy it again"
            )
        return _from_safetensors(stream, size, dtype)
    if head.startswith(b"version "):
        raise RestortError("a Git LFS pointer, not the weights; fetch them with: git lfs pull")
    if head.lstrip().startswith(b"<"):
        raise RestortError(
            "a web page, not the weights; open the link in a browser and download the file itself"
        )
    raise RestortError("neither a .safetensors file nor one of torch.save; give a file of weights")


def prepared(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state under published names with fixed buffers added; check names and shapes of the architecture.

    Needs only the `.shape` of values, so that a wrong file is refused before its numbers are read.
    """
    if elan_names.is_elan(state):
        state = elan_names.published_names(state)
        elan_names.add_fixed_buffers(state)
    detect(state)
    return state


def _from_torch(file: TorchFile, dtype: np.dtype[Any]) -> Content:
    found = find_state(file.content, is_array_ref)
    state = prepared(found.state)
    arrays = {name: file.array(value) if is_array_ref(value) else value for name, value in state.items()}
    return {name: _cast(value, name, dtype) for name, value in arrays.items()}, {}, found.note


def _from_safetensors(stream: IO[bytes], size: int, dtype: np.dtype[Any]) -> Content:
    from safetensors import SafetensorError, deserialize

    data = stream.read()
    try:
        tensors = {name: _decode(entry) for name, entry in deserialize(data)}  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        reason = str(error).rpartition(": ")[2][:80]
        raise RestortError(
            f"truncated or damaged .safetensors file ({reason}); download or copy it again"
        ) from None
    found = find_state(tensors, lambda value: isinstance(value, np.ndarray))
    state = {name: _cast(value, name, dtype) for name, value in prepared(found.state).items()}
    return state, _metadata(data), found.note


def _decode(entry: Mapping[str, Any]) -> Array:
    """Return the tensor that {"dtype", "shape", "data"} describes; data is little-endian bytes."""
    kind = _SAFETENSORS_TYPES.get(entry["dtype"])
    if kind is None:
        raise RestortError(
            f"tensors of type {entry['dtype']} are not supported; save the weights as float32 or float16"
        )
    flat: Array = np.frombuffer(entry["data"], dtype=np.dtype(kind).newbyteorder("<"))
    if entry["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return np.reshape(flat, entry["shape"])


def _metadata(data: bytes) -> dict[str, str]:
    """Return the free text of the header (the library gives it only for files opened by a path)."""
    import json

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {str(key): str(value) for key, value in (header.get("__metadata__") or {}).items()}


def _cast(value: Array, name: str, dtype: np.dtype[Any]) -> Array:
    if name.endswith("num_batches_tracked"):
        return value.astype(np.int64)
    if value.dtype.kind != "f":
        raise RestortError(f"the parameter {name} holds {value.dtype} numbers; save it as float32 or float16")
    with np.errstate(over="ignore", invalid="ignore"):  # _check_numbers reports what overflows
        return np.ascontiguousarray(value, dtype=dtype).reshape(value.shape)


def _check_numbers(state: Mapping[str, Array]) -> None:
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise RestortError(
                f"the parameter {name} holds NaN or infinite numbers; use a checkpoint from before training diverged"
            )
    elan_names.check_shifts(state)
