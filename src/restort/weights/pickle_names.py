"""What the names and calls in a PyTorch pickle stand for, as plain data.

Only the callables by which PyTorch and NumPy describe an array have a meaning here. Any other becomes an inert
`Opaque`, so that training checkpoints (arguments, optimiser objects) can be read. A name that no checkpoint needs,
such as `os.system`, makes the file invalid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from restort.errors import RestortError

MAX_DIMENSIONS = 8
MAX_INTEGER_KEY = 1 << 32  # magnitude; optimisers number their parameters from 0


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules and builtins that no checkpoint refers to, but attacks do.
_HOSTILE_MODULES = _words(
    """
    os posix nt subprocess commands popen2 sys importlib runpy shutil socket pty ctypes pickle _pickle
    marshal code codeop types bdb pdb timeit cProfile profile multiprocessing threading asyncio webbrowser
    urllib http ftplib
    requests httpx tempfile io _io builtins __builtin__ operator _operator platform signal inspect
    torch.hub torch.serialization torch.jit torch.utils.cpp_extension numpy.testing
    """
)
_HARMLESS_BUILTINS = _words(
    """
    set frozenset slice complex range bytearray bytes str int float bool list tuple dict object type
    Exception NoneType
    """
)
_HARMLESS_ELSEWHERE = frozenset(
    ("types.SimpleNamespace", "types.MethodType", "operator.attrgetter", "operator.itemgetter", "io.BytesIO")
)


class BadPickle(RestortError):
    """A stream that is not a pickle, or one that no checkpoint would hold."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """The name of an object or a callable; nothing else of it is kept."""

    name: str


@dataclass(frozen=True, eq=False)
class StorageRef:
    """A block of `numel` elements of the type `kind` (such as FloatStorage), kept outside the pickle under `key`."""

    key: str
    kind: str
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor whose numbers are not read yet: a window of a storage; offset and strides count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None  # overrides the type of an untyped storage


@dataclass(eq=False)
class DtypeRef:
    """A NumPy dtype: its code without byte order ('f4'), and '<' or '>' once the pickle has set its state."""

    code: str
    order: str = "<"


@dataclass(frozen=True, eq=False)
class Latin1:
    """Bytes that protocols before 3 write as text. Encoded only when used: the text may be shared by many."""

    text: str


@dataclass(eq=False)
class ArrayRef:
    """A NumPy array. Pickle makes it empty and sets its state afterwards; until then `dtype` is None."""

    shape: tuple[int, ...] = ()
    dtype: DtypeRef | None = None
    fortran: bool = False
    data: bytes | bytearray | Latin1 = field(default=b"", repr=False)

    def set_state(self, state: Any) -> None:
        """Take (version, shape, dtype, is_fortran, raw bytes), what ndarray.__setstate__ takes."""
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, DtypeRef) and isinstance(data, (bytes, bytearray, Latin1)):
            self.shape, self.dtype = _naturals(shape), dtype
            self.fortran, self.data = bool(fortran), data


def is_dict_key(key: Any) -> bool:
    """Return whether a key is kept: a string, or an integer too small for many of them to share a hash value."""
    return isinstance(key, str) or (isinstance(key, int) and -MAX_INTEGER_KEY < key < MAX_INTEGER_KEY)


def named(module: str, name: str) -> Opaque:
    """Return the stand-in for module.name without importing it; raise BadPickle for a hostile name."""
    full = f"{module}.{name}"
    if module in ("builtins", "__builtin__"):
        hostile = name not in _HARMLESS_BUILTINS
    else:
        parts = module.split(".")
        heads = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if "." in name:  # a chain of attributes, such as torch.os.system
            heads.update(name.split("."))
        hostile = bool(heads & _HOSTILE_MODULES) and full not in _HARMLESS_ELSEWHERE
    if hostile or "__" in name:
        raise BadPickle(f"the pickle asks to run {full[:80]}, which no checkpoint needs; nothing was run")
    return Opaque(full)


def described(function: Any, args: Any) -> Any:
    """Return what a call of `function` describes, if it is one that describes weights, else an Opaque."""
    if not isinstance(args, tuple) or not isinstance(function, Opaque):
        raise BadPickle("not a readable pickle (a call of no function)")
    handler = _DESCRIBERS.get(function.name)
    return Opaque(function.name) if handler is None else handler(args)


def set_state(value: Any, state: Any) -> None:
    """Apply the BUILD instruction where it completes an array; attributes of other objects are not kept."""
    if isinstance(value, ArrayRef):
        value.set_state(state)
    elif isinstance(value, DtypeRef) and isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
        value.order = ">"


def _mapping(args: tuple[Any, ...]) -> Any:
    """OrderedDict() or, from Python 2, OrderedDict([[key, value], ...]); dict has both forms too."""
    if not args or not isinstance(args[0], (dict, list)):
        return {}
    if isinstance(args[0], dict):
        return args[0]
    pairs = args[0].copy()
    # The list is taken over: a call repeated a million times on one long list must cost nothing.
    args[0].clear()
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and is_dict_key(pair[0])}


def _tensor(args: tuple[Any, ...]) -> Any:
    """_rebuild_tensor_v2(storage, offset, size, stride, ...) and its relatives (v3 adds the dtype)."""
    storage, offset, shape, stride = args[:4]
    dtype = args[6].name if len(args) > 6 and isinstance(args[6], Opaque) else None
    if not isinstance(storage, StorageRef):
        return Opaque("tensor without storage")
    return TensorRef(storage, _natural(offset), _naturals(shape), _naturals(stride), dtype)


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


def _subclass(args: tuple[Any, ...]) -> Any:
    """_rebuild_from_type_v2(function, type, args, state): a subclass of Tensor around a plain tensor."""
    return described(args[0], args[2])


def _dtype(args: tuple[Any, ...]) -> Any:
    """numpy.dtype(code, align, copy)."""
    return DtypeRef(args[0]) if args and isinstance(args[0], str) else Opaque("numpy.dtype")


def _encoded(args: tuple[Any, ...]) -> Any:
    """_codecs.encode(text, 'latin1'): how protocol 2 writes bytes."""
    if len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
        return Latin1(args[0])
    return Opaque("_codecs.encode")


def _frombuffer(args: tuple[Any, ...]) -> Any:
    """numpy.core.numeric._frombuffer(bytes, dtype, shape, order): an array in protocol 5."""
    array = ArrayRef()
    if len(args) == 4:
        array.set_state((1, args[2], args[1], args[3] == "F", args[0]))
    return array


_DESCRIBERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda args: {},
    "builtins.dict": _mapping,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _first,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encoded,
    # NumPy 2 moved numpy.core to numpy._core.
    "numpy.core.multiarray._reconstruct": lambda args: ArrayRef(),
    "numpy._core.multiarray._reconstruct": lambda args: ArrayRef(),
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
}


def storage(pid: Any) -> Any:
    """Return what the persistent id ('storage', type, key, location, elements[, view]) stands for.

    Only PyTorch before 0.4 wrote views.
    """
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        return Opaque("persistent object")
    if len(pid) > 5 and pid[5] is not None:
        raise BadPickle("storage views of PyTorch 0.3 are not supported; save the file with a newer PyTorch")
    kind, key, numel = pid[1], pid[2], pid[4]
    if not (isinstance(kind, Opaque) and isinstance(key, str)):
        raise BadPickle("not a readable pickle (a storage without type)")
    return StorageRef(key, kind.name, _natural(numel))


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise BadPickle("a tensor has an impossible size or offset; the file is damaged")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise BadPickle("a tensor has an impossible shape; the file is damaged")
    return tuple(_natural(value) for value in values)
