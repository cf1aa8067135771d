"""Pickles from strangers: read without importing or calling anything, and written back as they were.

What a pickle names is either known here (dictionaries, tensors) or becomes a placeholder that remembers the pickle's
instructions and does nothing else. A pickle of an unknown class therefore reads as data, and can be written again with
the same instructions, although the class is never imported.

Python's own unpickler is used (``pickle._Unpickler``, not the one in C): its instructions can be replaced one by one,
and it cannot be made to reserve gigabytes by a pickle of nine bytes (the C version sizes its memo by the largest number
that the pickle mentions).
"""

from __future__ import annotations

import io
import pickle
import re
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

MAX_PICKLE = 64 << 20
MAX_INSTRUCTIONS = 4_000_000  # about thirty per tensor; what they build stays below about a gigabyte
MAX_DEPTH = 100
_MAX_KEY = 64  # parts of a key
_MAX_COPIED = 1024  # what a single instruction may copy
_NAME = re.compile(r"[\w.<>-]{1,500}", re.ASCII)
_Unpickler: Any = pickle._Unpickler
_Pickler: Any = pickle._Pickler
_unframer: Any = pickle._Unframer  # type: ignore[attr-defined]
_STOP: Any = pickle._Stop  # type: ignore[attr-defined]
PLAIN_KEYS = (str, bytes, int, float, complex, bool, type(None))


class Global:
    """A class or function that a pickle names; nothing of it is imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    @property
    def path(self) -> str:
        """Dotted name, for example ``omegaconf.dictconfig.DictConfig``."""
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"<{self.path}, not imported>"


class Inert:
    """An object of an unknown class: the instructions that would make it, not carried out.

    Attributes:
        kind: instruction that creates it: ``reduce`` (a call), ``newobj`` or ``newobj_ex``.
        maker: class or function.
        args: its arguments, as the pickle has them.
        kwargs: keyword arguments of ``newobj_ex``.
        steps: what happens to it afterwards: ``build`` with a state, ``appends``, ``setitems`` and ``additems``.
    """

    __slots__ = ("args", "kind", "kwargs", "maker", "steps")

    def __init__(self, kind: str, maker: Any, args: Any, kwargs: Any = None) -> None:
        self.kind, self.maker, self.args, self.kwargs = kind, maker, args, kwargs
        self.steps: list[tuple[str, Any]] = []

    @property
    def path(self) -> str:
        """Dotted name of its class or of the function that makes it."""
        return self.maker.path if isinstance(self.maker, Global) else "an object"

    @property
    def state(self) -> Any:
        """The state that it would be given, or None."""
        return next((value for step, value in self.steps if step == "build"), None)

    @property
    def items(self) -> dict[Any, Any]:
        """Entries, where it is a kind of dictionary."""
        return {key: value for step, pairs in self.steps if step == "setitems" for key, value in pairs}

    @property
    def members(self) -> list[Any]:
        """Elements, where it is a kind of list or set."""
        return [item for step, some in self.steps if step in ("appends", "additems") for item in some]

    def __repr__(self) -> str:
        return f"<object of {self.path}, not made>"


class TorchDict(OrderedDict[Any, Any]):
    """An ordered dictionary from a pickle; attributes that the pickle gives it are kept apart in ``attributes``."""

    attributes: Mapping[str, Any] = types.MappingProxyType({})


class Known:
    """A function of ours in place of one that a pickle names; unlike a function, a pickle cannot change it."""

    __slots__ = ("call", "module", "name")

    def __init__(self, module: str, name: str, call: Callable[..., Any]) -> None:
        self.module, self.name, self.call = module, name, call

    @property
    def path(self) -> str:
        """Dotted name of what it stands for."""
        return f"{self.module}.{self.name}"


def _ordered_dict(*args: Any) -> TorchDict:
    content = TorchDict()
    if args and len(args[0]) > _MAX_COPIED:
        raise pickle.UnpicklingError("it copies large lists")
    for pair in args[0] if args else ():
        key, value = pair
        content[_key(key)] = value
    return content


ORDERED_DICT = Known("collections", "OrderedDict", _ordered_dict)


def _key(key: Any) -> Any:
    """The key of a dictionary, if hashing and printing it is harmless: nested tuples take exponential time or crash."""
    waiting, parts = [key], 0
    while waiting:
        part = waiting.pop()
        parts += 1
        if parts > _MAX_KEY or (isinstance(part, tuple) and len(part) > _MAX_KEY):
            raise pickle.UnpicklingError("a key is nested too deeply")
        if isinstance(part, tuple):
            waiting.extend(part)
        elif not isinstance(part, (*PLAIN_KEYS, Global, Inert, Known)) and not part.__hash__:
            raise pickle.UnpicklingError(f"a key is of type {type(part).__name__}")
    return key


class SafeUnpickler(_Unpickler):
    """Builds plain data; asks ``known`` for each class and function, and makes a placeholder of every other.

    Args:
        data: the pickle.
        known: what names stand for, by module and name.
        persistent: what references to storages stand for; by default they are refused.
        placeholders: accept unknown classes and functions as placeholders instead of refusing the pickle.

    Raises:
        pickle.UnpicklingError: it names something unknown and placeholders are off, or it is malformed or too large.
    """

    def __init__(
        self,
        data: bytes,
        known: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None = None,
        placeholders: bool = False,
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._known, self._persistent, self._placeholders = known, persistent, placeholders
        self._globals: dict[tuple[str, str], Global] = {}

    def find_class(self, module: str, name: str) -> Any:
        if not (
            isinstance(module, str) and isinstance(name, str) and _NAME.fullmatch(module) and _NAME.fullmatch(name)
        ):
            raise pickle.UnpicklingError("it names something that cannot be a class")  # nor be written back safely
        if (found := self._known.get((module, name))) is not None:
            return found
        if not self._placeholders:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return self._globals.setdefault((module, name), Global(module, name))

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to something outside itself")
        return self._persistent(pid)

    def load(self) -> Any:
        unframer = _unframer(self._file_read, self._file_readline)
        self.read, self.readinto, self.readline = unframer.read, unframer.readinto, unframer.readline
        self._unframer = unframer
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        read, dispatch = self.read, self.dispatch
        try:
            for _ in range(MAX_INSTRUCTIONS):
                dispatch[read(1)[0]](self)
        except _STOP as stop:
            return stop.value
        raise pickle.UnpicklingError("it has millions of instructions")

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it uses an instruction that no checkpoint needs")

    def _reduce(self) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("the arguments of a call are no tuple")
        if isinstance(maker, Known):
            self.append(maker.call(*args))
        elif isinstance(maker, Global):
            self.append(Inert("reduce", maker, args))
        else:
            raise pickle.UnpicklingError(f"it calls an object of type {type(maker).__name__}")

    def _newobj(self) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        if maker is ORDERED_DICT and args == ():
            self.append(TorchDict())
            return
        self._make("newobj", maker, args)

    def _newobj_ex(self) -> None:
        kwargs, args, maker = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._make("newobj_ex", maker, args, kwargs)

    def _make(self, kind: str, maker: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(maker, Global):
            raise pickle.UnpicklingError("it makes an object of something that is no class")
        self.append(Inert(kind, maker, args, kwargs))

    def _obj(self) -> None:
        args = self.pop_mark()
        self._make("reduce", args.pop(0), tuple(args))

    def _inst(self) -> None:
        module, name = self.readline()[:-1].decode("ascii"), self.readline()[:-1].decode("ascii")
        self._make("reduce", self.find_class(module, name), tuple(self.pop_mark()))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is TorchDict and isinstance(state, dict) and len(state) <= _MAX_COPIED:
            target.attributes = {**target.attributes, **state}
        elif type(target) is Inert:
            target.steps.append(("build", state))
        else:
            raise pickle.UnpicklingError(f"it changes {type(target).__name__} objects")

    def _add(self, values: list[Any], step: str) -> None:
        target = self.stack[-1]
        if type(target) is Inert:
            target.steps.append((step, values))
        elif step == "appends" and type(target) is list:
            target.extend(values)
        elif step == "additems" and type(target) is set:
            target.update(map(_key, values))
        else:
            raise pickle.UnpicklingError(f"it adds to {type(target).__name__} objects")

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if type(target) is Inert:
            target.steps.append(("setitems", pairs))
        elif type(target) in (dict, TorchDict):
            for key, value in pairs:
                target[_key(key)] = value
        else:
            raise pickle.UnpicklingError(f"it sets entries of {type(target).__name__} objects")

    def _bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)  # what is there; Python's own version reserves as much as the pickle says
        if len(data) != size:
            raise EOFError("it ends in the middle")
        self.append(bytearray(data))

    def _append_one(self) -> None:
        value = self.stack.pop()
        self._add([value], "appends")

    def _set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _dict(self) -> None:
        values = self.pop_mark()
        self.append({})
        self._set(values)

    def _frozenset(self) -> None:
        items = self.pop_mark()  # changes self.append
        self.append(frozenset(map(_key, items)))

    dispatch: dict[int, Any] = {  # noqa: RUF012 (as in the class it derives from)
        **_Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _newobj,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.OBJ[0]: _obj,
        pickle.INST[0]: _inst,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append_one,
        pickle.APPENDS[0]: lambda self: self._add(self.pop_mark(), "appends"),
        pickle.ADDITEMS[0]: lambda self: self._add(self.pop_mark(), "additems"),
        pickle.SETITEM[0]: _set_one,
        pickle.SETITEMS[0]: lambda self: self._set(self.pop_mark()),
        pickle.DICT[0]: _dict,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BYTEARRAY8[0]: _bytearray,
        **dict.fromkeys(
            (op[0] for op in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)),
            _refuse,
        ),
    }


class InertPickler(_Pickler):
    """Writes placeholders as the instructions that they stand for; everything else as usual."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) not in (Global, Known, Inert, TorchDict):
            super().save(obj, save_persistent_id)
        elif (known := self.memo.get(id(obj))) is not None:
            self.write(self.get(known[0]))
        elif type(obj) is TorchDict:
            attributes = dict(obj.attributes) or None
            self.save_reduce(OrderedDict, (), attributes, None, iter(obj.items()), obj=obj)
        elif type(obj) is Inert:
            self._save_inert(obj)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            self.memoize(obj)

    def _save_inert(self, obj: Inert) -> None:
        self.save(obj.maker)
        self.save(obj.args)
        if obj.kind == "newobj_ex":
            self.save(obj.kwargs)
        self.write({"reduce": pickle.REDUCE, "newobj": pickle.NEWOBJ, "newobj_ex": pickle.NEWOBJ_EX}[obj.kind])
        self.memoize(obj)
        for step, value in obj.steps:
            if step == "build":
                self.save(value)
                self.write(pickle.BUILD)
                continue
            self.write(pickle.MARK)
            for item in value:
                for part in item if step == "setitems" else (item,):
                    self.save(part)
            self.write({"appends": pickle.APPENDS, "setitems": pickle.SETITEMS, "additems": pickle.ADDITEMS}[step])
