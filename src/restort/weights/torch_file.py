"""The two file formats of `torch.save`, read without PyTorch: the zip archive and the older stream.

The constructors read only the description of the tensors; `TorchFile.array` reads the numbers of one tensor.
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
from restort.weights.pickle_names import ArrayRef, Latin1, StorageRef, TensorRef
from restort.weights.pickle_reader import read_pickle

Array = npt.NDArray[Any]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE_BYTES = 256 << 20
MAX_DIRECTORY_BYTES = 8 << 20  # of a zip archive: about 100,000 entries, which zipfile lists in a second
_ARRAY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
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
    """Return NumPy's code for the type of a storage (torch.FloatStorage) or a dtype (torch.float32)."""
    return _NAMES.get(name.rpartition(".")[2])


def _width(kind: str | None) -> int | None:
    """Return the bytes of one number."""
    return None if kind is None else 2 if kind == "bf16" else np.dtype(kind).itemsize


def is_array_ref(value: Any) -> bool:
    """Return whether `TorchFile.array` can read the value: a tensor, or a complete NumPy array of plain numbers."""
    if isinstance(value, ArrayRef):
        return value.dtype is not None and value.dtype.code in _ARRAY_CODES
    return isinstance(value, TensorRef)


class TorchFile:
    """An open checkpoint: `content` is what was saved, with a TensorRef or ArrayRef in the place of each array."""

    content: Any

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        # Tensors as trained hold no more numbers than their file. Views with strides of 0 could be of any size.
        self._budget = 8 * size + (16 << 20)
        self._cache: dict[str, bytes] = {}

    def array(self, ref: TensorRef | ArrayRef) -> Array:
        """Read the numbers of a tensor or array, C-contiguous, in the stored type (bfloat16 as float32)."""
        if isinstance(ref, ArrayRef):
            return self._numpy_array(ref)
        kind = _kind(ref.dtype or ref.storage.kind)
        width, stored = _width(kind), _width(_kind(ref.storage.kind))
        if kind is None or width is None or stored is None:
            raise RestortError(
                f"tensors of type {(ref.dtype or ref.storage.kind).rpartition('.')[2]} are not supported; "
                "save the weights as float32 or float16"
            )
        if len(ref.shape) != len(ref.stride):
            raise RestortError("the shape and strides of a tensor differ in length; the file is damaged")
        count = math.prod(ref.shape)
        self._spend(count * max(width, 4))
        numel = ref.storage.numel * stored // width
        last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride))
        if count and last >= numel:
            raise RestortError("a tensor reaches beyond its stored numbers; the file is damaged")
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

    def _numpy_array(self, ref: ArrayRef) -> Array:
        assert ref.dtype is not None  # is_array_ref
        kind = np.dtype(ref.dtype.code).newbyteorder("<" if ref.dtype.order == "<" else ">")
        count = math.prod(ref.shape)
        self._spend(2 * count * kind.itemsize)
        data = ref.data.text.encode("latin-1", "replace") if isinstance(ref.data, Latin1) else ref.data
        if len(data) != count * kind.itemsize:
            raise RestortError("an array holds fewer numbers than its shape; the file is damaged")
        flat = np.frombuffer(data, kind)
        window = flat.reshape(ref.shape, order="F" if ref.fortran else "C")
        return np.array(window, kind.newbyteorder("="), order="C")

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise RestortError(
                "the tensors are far larger than the file; it is damaged or was made to fill the memory"
            )

    def _bytes(self, storage: StorageRef, size: int) -> bytes:
        if storage.key not in self._cache:
            self._spend(size)
            self._cache[storage.key] = self._read(storage.key)
        data = self._cache[storage.key]
        if len(data) < size:
            raise RestortError(
                "a storage holds fewer numbers than it claims; the file is truncated or damaged"
            )
        return data

    def _read(self, key: str) -> bytes:
        raise NotImplementedError


class _BoundedReads:
    """A file for zipfile's constructor, which reads the central directory, however large, in one piece."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise RestortError("the zip archive lists too many entries; save the state_dict by itself")
        return self._stream.read(size)


class ZipTorchFile(TorchFile):
    """A file of torch.save since version 1.6: a zip of uncompressed entries, `NAME/data.pkl`, `NAME/data/KEY`."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        super().__init__(stream, size)
        self._size = size
        try:
            zipfile.ZipFile(_BoundedReads(stream))
            self._zip = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, ValueError, OSError, OverflowError, NotImplementedError, struct.error):
            raise RestortError("truncated or damaged PyTorch checkpoint; download or copy it again") from None
        self._entries = {info.filename: info for info in self._zip.infolist()}
        pickles = [name for name in self._entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RestortError(
                "a zip archive, but not a PyTorch checkpoint; unpack it, or give the .pth file"
            )
        self._folder = pickles[0][: -len("data.pkl")]
        if any(
            name.startswith((f"{self._folder}code/", f"{self._folder}constants.pkl"))
            for name in self._entries
        ):
            raise RestortError("a TorchScript program, not weights; save the model's state_dict() instead")
        if f"{self._folder}byteorder" in self._entries:
            self._little = self._entry("byteorder", 64).strip() != b"big"
        self.content = read_pickle(self._entry("data.pkl", MAX_PICKLE_BYTES))

    def _entry(self, name: str, limit: int) -> bytes:
        info = self._entries.get(self._folder + name)
        if info is None:
            raise RestortError(f"the checkpoint lacks the entry {name[:40]}; the file is damaged")
        # PyTorch never compresses. A compressed entry could unpack to any size.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RestortError(
                "a compressed or encrypted zip archive, not a file of torch.save; unpack it, or save the weights anew"
            )
        if info.file_size > min(limit, self._size):
            raise RestortError("the checkpoint claims entries larger than the file; it is damaged")
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
            raise RestortError("truncated or damaged PyTorch checkpoint; download or copy it again") from None

    def _read(self, key: str) -> bytes:
        return self._entry(f"data/{key}", self._size)


class LegacyTorchFile(TorchFile):
    """A file of torch.save before version 1.6: five pickles (magic, version, system, content, keys), then storages.

    Each storage is its number of elements (8 bytes, little-endian) and its bytes (little-endian too).
    """

    def __init__(self, stream: IO[bytes], size: int) -> None:
        super().__init__(stream, size)
        # The pickles come first; reading a bounded head keeps a damaged length from allocating memory.
        head = io.BytesIO(stream.read(min(size, MAX_PICKLE_BYTES)))
        if read_pickle(head) != LEGACY_MAGIC:
            raise RestortError(
                "a pickle, but not one written by torch.save; save a state_dict with torch.save"
            )
        read_pickle(head)
        read_pickle(head)
        self._storages: dict[str, StorageRef] = {}
        self.content = read_pickle(head, self._storages)
        keys = read_pickle(head)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RestortError("the list of storages is damaged; download or copy the file again")
        self._keys: list[str] = keys
        self._start = head.tell()
        self._size = size
        self._places: dict[str, tuple[int, int]] = {}

    def array(self, ref: TensorRef | ArrayRef) -> Array:
        if not self._places:
            self._locate()
        return super().array(ref)

    def _locate(self) -> None:
        """Find the storages: each gives its number of elements, and the content the type of these."""
        widths = {ref.key: _width(_kind(ref.kind)) for ref in self._storages.values()}
        position = self._start
        for key in self._keys:
            self._stream.seek(position)
            raw = self._stream.read(8)
            count = struct.unpack("<q", raw)[0] if len(raw) == 8 else -1
            width = widths.get(key)
            if width is None:
                break  # an unknown type: the storages behind it cannot be found
            length = count * width
            if count < 0 or position + 8 + length > self._size:
                raise RestortError("truncated PyTorch checkpoint; download or copy it again")
            self._places[key] = (position + 8, length)
            position += 8 + length

    def _read(self, key: str) -> bytes:
        if key not in self._places:
            raise RestortError("the numbers of a tensor are missing; the file is truncated or damaged")
        start, length = self._places[key]
        self._stream.seek(start)
        return self._stream.read(length)
