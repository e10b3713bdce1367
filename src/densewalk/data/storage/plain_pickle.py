"""Read a pickle that holds plain data only, without executing anything: no class is looked up, no function called.

    read_plain_pickle("gnd_roxford5k.pkl")["imlist"]

A pickle is a program. Here its instructions are read one by one, and those that make lists, tuples, dicts, numbers and text are
followed. Names of functions are compared with the few that numpy writes for arrays of numbers (`NAMES`), and what these would make is
made here from the bytes. Every other name and every other instruction is refused.
"""

import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from densewalk.core.errors import UserError
from densewalk.data.storage.places import open_file

LARGEST = 64 * 2**20  # bytes of a file
MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
NAMES = {
    *((module, name) for module in MODULES for name in ("_reconstruct", "scalar")),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes")),  # how Python 3 writes bytes for Python 2
}
NUMBERS = re.compile(r"[<>|=]?(b1|[iuf][1248])")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """Why a pickle is not followed."""


class Name:
    """The name of a function or class, which stands for itself alone."""

    def __init__(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in NAMES:
            raise Refused(f"names {str(module)[:80]}.{str(name)[:80]}, which is no plain data")
        self.name = name


class Dtype:
    """The type of an array's numbers; its byte order is said after it is made."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        if not isinstance(code, str) or NUMBERS.fullmatch(code) is None:
            raise Refused(f"holds an array of type {str(code)[:80]!r}, not of numbers")
        self.code, self.order = code.lstrip("<>|="), code[0] if code[0] in "<>|=" else "="

    def set_state(self, state: Any) -> None:
        """Take the byte order of (version, order, None, None, None, -1, -1, flags)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None,) * 3:
            raise Refused("holds an array whose type is not one of numbers")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy's."""
        return np.dtype(self.order + self.code)


class Array:
    """An array that is being read: its numbers come after it is made."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Take the numbers of (version, shape, type, column after column, bytes)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("holds an array of another form")
        shape, dtype, fortran, content = state[-4:]
        self.values = numbers(content, dtype, shape, "F" if fortran is True else "C")


def numbers(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The array of these bytes."""
    if isinstance(content, str):  # Python 2's
        content = content.encode("latin-1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, Dtype):
        raise Refused("holds an array of objects")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape) or order not in ("C", "F"):
        raise Refused("holds an array without a shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise Refused(f"holds an array of shape {str(shape)[:80]} in {len(content)} bytes")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def call(function: Any, arguments: Any) -> Any:
    """What one of the known functions would make."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("calls something that is no function of numpy's")
    try:
        match function.name:
            case "_reconstruct" if isinstance(arguments[0], Name) and arguments[0].name == "ndarray":
                return Array()
            case "dtype":
                return Dtype(*arguments)
            case "scalar":
                dtype, content = arguments
                return numbers(content, dtype, (), "C").item()
            case "_frombuffer":
                content, dtype, shape, order = arguments
                array = Array()
                array.values = numbers(content, dtype, shape, order)
                return array
            case "bytes" if not arguments:
                return b""
            case "encode":
                text, encoding = arguments
                if isinstance(text, str) and encoding in ("latin1", "latin-1"):
                    return text.encode("latin-1")
    except (IndexError, TypeError, ValueError) as error:
        raise Refused(f"calls {function.name} with other arguments than numpy's: {error}") from error
    raise Refused(f"calls {function.name} with other arguments than numpy's")


class Reader:
    """The stack and memory of a pickle, and what each instruction does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memory: dict[int, Any] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.mark(),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "LIST": lambda _: self.push(self.above_mark()),
            "TUPLE": lambda _: self.push(tuple(self.above_mark())),
            "DICT": lambda _: self.fill({}, self.above_mark()),
            "APPEND": lambda _: self.extend([self.stack.pop()]),
            "APPENDS": lambda _: self.extend(self.above_mark()),
            "SETITEM": lambda _: self.set_items(self.last(2)),
            "SETITEMS": lambda _: self.set_items(self.above_mark()),
            "MEMOIZE": lambda _: self.remember(len(self.memory)),
            "GLOBAL": lambda argument: self.stack.append(Name(*argument.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self.stack.append(Name(*self.last(2))),
            "REDUCE": lambda _: self.stack.append(call(*self.last(2))),
            "BUILD": lambda _: self.build(self.stack.pop()),
        }
        self.actions |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self.remember)
        self.actions |= dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self.recall)

    def follow(self, name: str, argument: Any) -> None:
        """Do what one instruction says."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in TUPLES:
            self.stack.append(tuple(self.last(TUPLES[name])))
        elif name in self.actions:
            self.actions[name](argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"has the instruction {name}, which plain data do without")

    def push(self, thing: Any) -> None:
        """Put a thing on the stack, on the one there is after the thing was made."""
        self.stack.append(thing)

    def mark(self) -> None:
        """Begin a sequence."""
        self.outer.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        """End a sequence: what has come since it began."""
        found, self.stack = self.stack, self.outer.pop()
        return found

    def last(self, count: int) -> list[Any]:
        """Take the last things from the stack, in their order."""
        if len(self.stack) < count:
            raise IndexError("too few")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def extend(self, items: list[Any]) -> None:
        """Add to the list that lies on the stack."""
        if not isinstance(self.stack[-1], list):
            raise Refused("appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict that lies on the stack."""
        if not isinstance(self.stack[-1], dict):
            raise Refused("sets items of what is no dict")
        self.fill(self.stack.pop(), items)

    def fill(self, target: dict[Any, Any], items: list[Any]) -> None:
        """Put a dict with these keys and values, in turn, on the stack."""
        keys = items[::2]
        if len(items) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise Refused("has a dict whose keys are not text or numbers")
        target.update(zip(keys, items[1::2], strict=True))
        self.stack.append(target)

    def remember(self, number: int) -> None:
        """Keep what lies on the stack."""
        self.memory[int(number)] = self.stack[-1]

    def recall(self, number: int) -> None:
        """Put what was kept on the stack again."""
        self.stack.append(self.memory[int(number)])

    def build(self, state: Any) -> None:
        """Give an array or a type what belongs to it."""
        if not isinstance(self.stack[-1], Array | Dtype):
            raise Refused("sets the state of what is no array")
        self.stack[-1].set_state(state)


def read_plain_pickle(path: str | Path) -> Any:
    """The plain data of a pickle: dicts, lists, tuples, numbers, text, and `Array`s.

    Raises:
        UserError: too large, damaged, or not of plain data alone; the message names the file and what it asks for.
    """
    todo = "download it again from the benchmark's own site; nothing of it was executed"
    try:
        with open_file(Path(path)) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", todo=todo) from error
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MiB", todo=todo)
    reader = Reader()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            reader.follow(opcode.name, argument)
        if reader.outer or len(reader.stack) != 1:
            raise Refused("leaves more or less than one thing")
    except Refused as error:
        raise UserError(f"{path} {error}", allowed="lists, dicts, numbers, text and numpy's arrays of numbers", todo=todo) from error
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged: {error}", todo=todo) from error
    return reader.stack[0]
