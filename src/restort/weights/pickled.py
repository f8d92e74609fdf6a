"""What the names and descriptions in a PyTorch pickle stand for, as plain data.

Of all callables only those by which PyTorch describes a tensor have a meaning here; any other becomes an
inert `Opaque`, so that training checkpoints (arguments, optimiser objects) can be read, except where the
name is one no checkpoint needs, such as `os.system`: such a file is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from restort.errors import RestortError

MAX_DIMENSIONS = 8


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
    """The stream is not a pickle, or one that no checkpoint would hold."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for an object or a callable of which only the name is kept."""

    name: str


@dataclass(frozen=True, eq=False)
class StorageRef:
    """Names a block of `numel` elements of the type `kind` (such as FloatStorage) kept outside the pickle."""

    key: str
    kind: str
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor whose numbers are not read yet: a strided window (in elements) of a storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None  # where given, how to read an untyped storage


def named(module: str, name: str) -> Opaque:
    """The stand-in for module.name, which is not imported; BadPickle where no checkpoint would name it."""
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
        raise BadPickle(f"it asks to run {full[:80]}, which no checkpoint needs; nothing was run")
    return Opaque(full)


def described(function: Any, args: Any) -> Any:
    """What calling `function` would have given, where it is one of the few that describe weights."""
    if not isinstance(args, tuple) or not isinstance(function, Opaque):
        raise BadPickle("it is not a readable pickle (a call of no function)")
    handler = _DESCRIBERS.get(function.name)
    return Opaque(function.name) if handler is None else handler(args)


def _mapping(args: tuple[Any, ...]) -> Any:
    """OrderedDict() or, from Python 2, OrderedDict([[key, value], ...]); the same for dict."""
    if not args or not isinstance(args[0], (dict, list)):
        return {}
    if isinstance(args[0], dict):
        return args[0]
    pairs = args[0].copy()
    args[0].clear()  # taken over: a call repeated a million times on one long list must not cost anything
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and isinstance(pair[0], (str, int))}


def _tensor(args: tuple[Any, ...]) -> Any:
    """_rebuild_tensor_v2(storage, offset, size, stride, ...) and its relations (v3 adds the dtype)."""
    storage, offset, shape, stride = args[:4]
    dtype = args[6].name if len(args) > 6 and isinstance(args[6], Opaque) else None
    if not isinstance(storage, StorageRef):
        return Opaque("tensor without storage")
    return TensorRef(storage, _natural(offset), _naturals(shape), _naturals(stride), dtype)


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


def _subclass(args: tuple[Any, ...]) -> Any:
    """_rebuild_from_type_v2(function, type, args, state): a subclass of Tensor around a plain one."""
    return described(args[0], args[2])


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
}


def storage(pid: Any) -> Any:
    """What a persistent id, ('storage', type, key, location, elements[, view]), stands for.

    Views were written by PyTorch before 0.4 only.
    """
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        return Opaque("persistent object")
    if len(pid) > 5 and pid[5] is not None:
        raise BadPickle(
            "it holds storage views as PyTorch 0.3 wrote them; save it again with a newer PyTorch"
        )
    kind, key, numel = pid[1], pid[2], pid[4]
    if not (isinstance(kind, Opaque) and isinstance(key, str)):
        raise BadPickle("it is not a readable pickle (a storage without type)")
    return StorageRef(key, kind.name, _natural(numel))


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise BadPickle("it holds a tensor with an impossible size or offset")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise BadPickle("it holds a tensor with an impossible shape")
    return tuple(_natural(value) for value in values)
