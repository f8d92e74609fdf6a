"""Read a pickle as data: nothing a pickle names is ever imported, called or instantiated.

`pickle.Unpickler` calls what the stream tells it to call, and even a restricted `find_class` leaves BUILD free to
write attributes. So the standard library (`pickletools`) decodes the instructions, and the machine here interprets
them on plain lists, tuples and dicts; `restort.weights.pickle_names` defines what names stand for.

Time is bounded as well: the number of instructions is limited, and so are the integers used as keys of dicts and of
the memo, because integers that differ by multiples of 2**61 - 1 share one hash value in CPython.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import IO, Any

from restort.weights.pickle_names import (
    BadPickle,
    Opaque,
    StorageRef,
    described,
    is_dict_key,
    named,
    set_state,
    storage,
)

MAX_INSTRUCTIONS = 2_000_000  # the optimiser state of a full-size Restormer takes about 200,000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def read_pickle(data: bytes | IO[bytes], storages: dict[str, StorageRef] | None = None) -> Any:
    """Read one pickle and leave a file just behind it; add every storage it names to `storages`.

    Dicts (ordered ones too), lists, tuples, numbers, strings and bytes come back as such, tensors as `TensorRef`,
    NumPy arrays as `ArrayRef`, everything else as `Opaque`. Raises BadPickle; never runs anything the pickle names.
    """
    try:
        return _Machine({} if storages is None else storages).run(
            io.BytesIO(data) if isinstance(data, bytes) else data
        )
    except BadPickle:
        raise
    # pickletools and the machine meet arbitrary bytes here: any of these errors means a damaged pickle.
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise BadPickle(f"not a readable pickle ({type(error).__name__})") from None


_MARK = object()
_Dict = dict[Any, Any]


class _Machine:
    """The pickle virtual machine, without the power to import or call."""

    def __init__(self, storages: dict[str, StorageRef]) -> None:
        self.stack: list[Any] = []
        self.memo: _Dict = {}
        self.storages = storages

    def run(self, stream: IO[bytes]) -> Any:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_INSTRUCTIONS:
                raise BadPickle(
                    f"the pickle has more than {MAX_INSTRUCTIONS:,} instructions; "
                    "save the model's state_dict() by itself"
                )
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
                raise BadPickle(f"the pickle holds the instruction {name}, which no checkpoint needs")
        raise BadPickle("the pickle ends early; the file is truncated")

    def to_mark(self) -> list[Any]:
        """Pop everything above the topmost mark, and the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise BadPickle("not a readable pickle (no mark)")

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self.to_mark()

    def dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, arg: Any) -> None:
        key = len(self.memo) if arg is None else arg
        if not 0 <= key < MAX_INSTRUCTIONS:  # picklers number their memo from 0
            raise BadPickle("not a readable pickle (an impossible memo number)")
        self.memo[key] = self.stack[-1]

    def get(self, arg: Any) -> None:
        self.stack.append(self.memo[arg])

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise BadPickle("not a readable pickle (stack underflow)")
        self.stack[-count:] = [items]

    def tuple_from_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def list_from_mark(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    def set_from_mark(self, _: Any) -> None:
        self.to_mark()  # hashing a set's items can be made costly, and no weights are kept in one
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
            raise BadPickle("not a readable pickle (append to no list)")

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[0::2], items[1::2]):
                # Other keys, such as nested tuples, can be made to take very long to hash.
                if is_dict_key(key):
                    target[key] = value
        elif not isinstance(target, Opaque):
            raise BadPickle("not a readable pickle (items for no dict)")

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)

    def find_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(named(module, name))

    def find_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise BadPickle("not a readable pickle (a name that is no string)")
        self.stack.append(named(module, name))

    def reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(described(function, args))

    def new_object(self, _: Any) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.stack.append(described(cls, args))

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
        found = storage(self.stack.pop())
        if isinstance(found, StorageRef):
            self.storages.setdefault(found.key, found)
        self.stack.append(found)


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
    "BUILD": _Machine.build,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "INST": _Machine.old_instance,
    "OBJ": _Machine.old_object,
    "BINPERSID": _Machine.persistent,
}
