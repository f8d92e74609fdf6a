"""The two file formats of `torch.save`, read without PyTorch: the zip archive and the older stream.

Only the description of the tensors is read at first; `TorchFile.array` fetches the numbers of one.
Sizes are checked against the file before anything is allocated.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from restort.errors import RestortError
from restort.weights.pickled import StorageRef, TensorRef
from restort.weights.unpickle import read_pickle

Array = npt.NDArray[Any]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE_BYTES = 256 << 20
_NAMES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "UntypedStorage": "u1",
    "BoolStorage": "?",
    "float64": "f8",
    "double": "f8",
    "float32": "f4",
    "float": "f4",
    "float16": "f2",
    "half": "f2",
    "bfloat16": "bf16",
    "int64": "i8",
    "long": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "?",
}


def _kind(name: str) -> str | None:
    """NumPy's name of the type that a storage (torch.FloatStorage) or a dtype (torch.float32) holds."""
    return _NAMES.get(name.rpartition(".")[2])


def _width(kind: str | None) -> int | None:
    """Bytes of one number."""
    return None if kind is None else 2 if kind == "bf16" else np.dtype(kind).itemsize


class TorchFile:
    """An open checkpoint: `content` is what was saved, with a `TensorRef` in the place of each tensor."""

    content: Any

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        # Written tensors never hold more numbers than their file; views that repeat one number could.
        self._budget = 8 * size + (16 << 20)
        self._cache: dict[str, bytes] = {}

    def array(self, ref: TensorRef) -> Array:
        """The numbers of a tensor, C-contiguous, of the stored type (bfloat16 as float32)."""
        kind = _kind(ref.dtype or ref.storage.kind)
        width, stored = _width(kind), _width(_kind(ref.storage.kind))
        if kind is None or width is None or stored is None:
            raise RestortError(f"it holds a tensor of the unsupported type {ref.dtype or ref.storage.kind}")
        if len(ref.shape) != len(ref.stride):
            raise RestortError("it holds a tensor whose shape and strides differ in length")
        count = math.prod(ref.shape)
        self._spend(count * max(width, 4))
        numel = ref.storage.numel * stored // width
        last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride))
        if count and last >= numel:
            raise RestortError(
                "it holds a tensor that reaches beyond its stored numbers; the file is damaged"
            )
        data = self._bytes(ref.storage, numel * width)
        flat = np.frombuffer(data, dtype="u2" if kind == "bf16" else kind, count=numel)
        if not self._little:
            flat = flat.byteswap()
        if not count:
            window = np.zeros(ref.shape, flat.dtype)
        else:
            strides = tuple(s * flat.itemsize for s in ref.stride)
            window = np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.shape, strides, writeable=False)
        if kind == "bf16":
            return (window.astype(np.uint32) << 16).view(np.float32)
        return np.array(window, order="C")

    _little = True

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise RestortError(
                "its tensors are far larger than the file; it is damaged or was made to fill the memory"
            )

    def _bytes(self, storage: StorageRef, size: int) -> bytes:
        if storage.key not in self._cache:
            self._spend(size)
            self._cache[storage.key] = self._read(storage.key)
        data = self._cache[storage.key]
        if len(data) < size:
            raise RestortError("it holds fewer numbers than it says; the file is truncated or damaged")
        return data

    def _read(self, key: str) -> bytes:
        raise NotImplementedError


class ZipTorchFile(TorchFile):
    """torch.save since version 1.6: a zip of uncompressed entries, `NAME/data.pkl` and `NAME/data/KEY`."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        super().__init__(stream, size)
        self._size = size
        try:
            self._zip = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, ValueError, OSError, OverflowError, NotImplementedError, struct.error):
            raise RestortError(
                "it is a truncated or damaged PyTorch checkpoint; fetch or copy it again"
            ) from None
        self._entries = {info.filename: info for info in self._zip.infolist()}
        pickles = [name for name in self._entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RestortError("it is a zip archive, but not a PyTorch checkpoint")
        self._folder = pickles[0][: -len("data.pkl")]
        if any(
            name.startswith((f"{self._folder}code/", f"{self._folder}constants.pkl"))
            for name in self._entries
        ):
            raise RestortError(
                "it is a TorchScript program, not weights; save the model's state_dict() instead"
            )
        if f"{self._folder}byteorder" in self._entries:
            self._little = self._entry("byteorder", 64).strip() != b"big"
        self.content = read_pickle(self._entry("data.pkl", MAX_PICKLE_BYTES))

    def _entry(self, name: str, limit: int) -> bytes:
        info = self._entries.get(self._folder + name)
        if info is None:
            raise RestortError(f"it lacks the entry {name[:40]}; the file is damaged")
        # PyTorch stores, never compresses: an entry larger than the file is a trap for our memory.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RestortError(
                "it is a compressed or encrypted zip archive, not a file written by torch.save"
            )
        if info.file_size > min(limit, self._size):
            raise RestortError("it claims entries larger than itself; the file is damaged")
        try:
            return self._zip.read(info)
        except (
            zipfile.BadZipFile,
            ValueError,
            OSError,
            EOFError,
            OverflowError,
            NotImplementedError,
            struct.error,
        ):
            raise RestortError(
                "it is a truncated or damaged PyTorch checkpoint; fetch or copy it again"
            ) from None

    def _read(self, key: str) -> bytes:
        return self._entry(f"data/{key}", self._size)


class LegacyTorchFile(TorchFile):
    """torch.save before version 1.6: five pickles (magic, version, system, content, keys), then storages.

    Each storage is its number of elements (8 bytes, little-endian) and its bytes (little-endian too).
    """

    def __init__(self, stream: IO[bytes], size: int) -> None:
        super().__init__(stream, size)
        # The pickles are small beside the numbers: a damaged length must not cost memory.
        head = io.BytesIO(stream.read(min(size, MAX_PICKLE_BYTES)))
        if read_pickle(head) != LEGACY_MAGIC:
            raise RestortError(
                "it is a pickle, but not one written by torch.save; save a state_dict with torch.save"
            )
        read_pickle(head)
        read_pickle(head)
        self._storages: dict[str, StorageRef] = {}
        self.content = read_pickle(head, self._storages)
        keys = read_pickle(head)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RestortError("its list of storages is damaged")
        self._keys: list[str] = keys
        self._start = head.tell()
        self._size = size
        self._places: dict[str, tuple[int, int]] = {}

    def array(self, ref: TensorRef) -> Array:
        if not self._places:
            self._locate()
        return super().array(ref)

    def _locate(self) -> None:
        """Storages say how many elements they have, and the content of which type these are."""
        widths = {ref.key: _width(_kind(ref.kind)) for ref in self._storages.values()}
        position = self._start
        for key in self._keys:
            self._stream.seek(position)
            raw = self._stream.read(8)
            count = struct.unpack("<q", raw)[0] if len(raw) == 8 else -1
            width = widths.get(key)
            if width is None:
                break  # of a type unknown here: what follows cannot be found
            length = count * width
            if count < 0 or position + 8 + length > self._size:
                raise RestortError("it is a truncated PyTorch checkpoint; fetch or copy it again")
            self._places[key] = (position + 8, length)
            position += 8 + length

    def _read(self, key: str) -> bytes:
        if key not in self._places:
            raise RestortError("it lacks the numbers of a tensor; the file is truncated or damaged")
        start, length = self._places[key]
        self._stream.seek(start)
        return self._stream.read(length)
