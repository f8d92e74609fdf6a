"""Reads a pickle as data: nothing a pickle names is ever imported, called or instantiated.

`pickle.Unpickler` calls what the stream tells it to call, and even a restricted `find_class` leaves
BUILD free to write attributes. So the opcodes are decoded by the standard library (`pickletools`) and
interpreted here on plain lists, tuples and dicts. Of all callables only those by which PyTorch
describes a tensor have a meaning; any other becomes an inert `Opaque`, so that training checkpoints
(arguments, optimiser objects) can be read, except where the name is one no checkpoint needs, such as
`os.system`: such a file is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from restort.errors import RestortError

MAX_DIMENSIONS = 8


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules and builtins that no checkpoint refers to, but attacks do.
_HOSTILE_MODULES = _words(
    """
    os posix nt subprocess sys importlib runpy shutil socket pty ctypes pickle _pickle marshal code codeop
    types bdb pdb timeit cProfile profile multiprocessing threading asyncio webbrowser urllib http ftplib
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


def read_pickle(data: bytes | IO[bytes], storages: dict[str, StorageRef] | None = None) -> Any:
    """The value of one pickle; a file is left just behind it. Every storage met is noted in `storages`.

    Dicts (ordered ones too), lists, tuples, sets, numbers, strings and bytes come back as such, tensors as
    `TensorRef`, everything else as `Opaque`. Raises BadPickle; never runs anything named in the pickle.
    """
    try:
        return _Machine({} if storages is None else storages).run(
            io.BytesIO(data) if isinstance(data, bytes) else data
        )
    except BadPickle:
        raise
    # pickletools and the interpreter meet arbitrary bytes here; whatever they stumble on is a damaged pickle.
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise BadPickle(f"it is not a readable pickle ({type(error).__name__})") from None


_MARK = object()
_Dict = dict[Any, Any]


class _Machine:
    """The pickle virtual machine, without the power to import or call."""

    def __init__(self, storages: dict[str, StorageRef]) -> None:
        self.stack: list[Any] = []
        self.memo: _Dict = {}
        self.storages = storages

    def run(self, stream: IO[bytes]) -> Any:
        for opcode, arg, _ in pickletools.genops(stream):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self.stack.append(arg)
            elif name in _ACTIONS:
                _ACTIONS[name](self, arg)
            else:
                raise BadPickle(f"it holds the pickle instruction {name}, which no checkpoint needs")
        raise BadPickle("it ends inside its pickle")

    def to_mark(self) -> list[Any]:
        """Pops everything above the topmost mark, and the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise BadPickle("it is not a readable pickle (no mark)")

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self.to_mark()

    def dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, arg: Any) -> None:
        self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]

    def get(self, arg: Any) -> None:
        self.stack.append(self.memo[arg])

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise BadPickle("it is not a readable pickle (stack underflow)")
        self.stack[-count:] = [items]

    def tuple_from_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def list_from_mark(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    def set_from_mark(self, _: Any) -> None:
        self.to_mark()  # a set could force costly hashing, and no weights are kept in one
        self.stack.append(Opaque("set"))

    def dict_from_mark(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append({})
        self._set(items)

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise BadPickle("it is not a readable pickle (append to no list)")

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[0::2], items[1::2]):
                # Only cheap keys are kept: hashing nested tuples can be made to take for ever.
                if isinstance(key, (str, int, float, bytes)) or key is None:
                    target[key] = value
        elif not isinstance(target, Opaque):
            raise BadPickle("it is not a readable pickle (items for no dict)")

    def ignore_state(self, _: Any) -> None:
        self.stack.pop()  # attributes, such as a state dict's _metadata, are of no use here

    def find_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(_global(module, name))

    def find_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise BadPickle("it is not a readable pickle (a name that is no string)")
        self.stack.append(_global(module, name))

    def reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_describe(function, args))

    def new_object(self, _: Any) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.stack.append(_describe(cls, args))

    def new_object_ex(self, _: Any) -> None:
        self.stack.pop()
        self.new_object(None)

    def old_instance(self, arg: str) -> None:
        self.to_mark()
        self.find_global(arg)

    def old_object(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(items[0] if items and isinstance(items[0], Opaque) else Opaque("object"))

    def persistent(self, _: Any) -> None:
        found = _storage(self.stack.pop())
        if isinstance(found, StorageRef):
            self.storages.setdefault(found.key, found)
        self.stack.append(found)


def _global(module: str, name: str) -> Opaque:
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


def _describe(function: Any, args: Any) -> Any:
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
    return _describe(args[0], args[2])


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


def _storage(pid: Any) -> Any:
    """('storage', type, key, location, elements[, view]); views were written by PyTorch before 0.4 only."""
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


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Opaque("set"),
}
_LITERALS = _words(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    """
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, arg: None,
    "FRAME": lambda machine, arg: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE1": lambda machine, arg: machine.tuple_of(1),
    "TUPLE2": lambda machine, arg: machine.tuple_of(2),
    "TUPLE3": lambda machine, arg: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_from_mark,
    "LIST": _Machine.list_from_mark,
    "DICT": _Machine.dict_from_mark,
    "FROZENSET": _Machine.set_from_mark,
    "ADDITEMS": _Machine.pop_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.ignore_state,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "INST": _Machine.old_instance,
    "OBJ": _Machine.old_object,
    "BINPERSID": _Machine.persistent,
}
