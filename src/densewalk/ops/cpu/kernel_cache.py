"""Machine code on disk that is found again only if nothing has changed that it was made of.

    kernel = numba.njit(function)
    cache_kernel(kernel)

numba's own cache looks at the file and the bytecode of the function alone. Machine code also holds the values of global constants, the
functions that are called, the fields of named tuples and the compiler's options. Any of them can be written in another file: a change
there would leave the old machine code in use. Here a digest of all of them is a part of the key.
"""

import sys
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.core import types
from numba.core.caching import FunctionCache
from numba.extending import is_jitted

FOREIGN = sys.stdlib_module_names | {"numba", "numpy"}  # numba knows their functions by name, and its version is in the key


def cache_kernel(kernel: Any) -> None:
    """Let a function of `numba.njit` be read from the disk and written there, if numba finds a folder for it."""
    try:
        kernel._cache = KernelCache(kernel)
    except RuntimeError:  # numba found no such folder
        return


class KernelCache(FunctionCache):
    """numba's cache of one function; the digest is taken when the function is compiled, since it may call others that are defined later."""

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel.py_func)
        self._kernel = kernel

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        found = (_description(self._kernel, []), list(_fields(getattr(sig, "args", sig))))
        return (*super()._index_key(sig, codegen), sha256(repr(found).encode()).hexdigest())


def _description(value: Any, seen: list[Any]) -> Any:
    """Nested tuples of text, bytes and numbers that differ if the machine code of `value` can differ. seen: functions so far."""
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value).__name__, value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return type(value).__qualname__, getattr(value, "_fields", ()), [_description(part, seen) for part in value]
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(repr(_description(part, seen)) for part in value)
    if isinstance(value, dict):
        return "dict", [(_description(key, seen), _description(part, seen)) for key, part in value.items()]
    if isinstance(value, types.Type):
        return "numba", str(value), list(_fields([value]))
    if isinstance(value, (type, BuiltinFunctionType, np.ufunc, ModuleType)) or _is_foreign(value):
        return type(value).__name__, getattr(value, "__module__", None), _name(value), getattr(value, "_fields", ())
    return _function_description(value, seen)


def _function_description(value: Any, seen: list[Any]) -> Any:
    """Code, defaults, options and everything outside that the code names."""
    if is_jitted(value):
        function, options = value.py_func, value.targetoptions
    else:
        function, options = getattr(value, "_defn", value), {}  # an intrinsic function is made by another
    if not isinstance(function, FunctionType):
        raise AssertionError(f"a kernel cannot be cached: it uses {value!r}, of which kernel_cache.py does not know when it changes")
    if function in seen:
        return "seen", seen.index(function)
    seen.append(function)
    describe = partial(_description, seen=seen)
    code = function.__code__
    cells = {} if function.__closure__ is None else dict(zip(code.co_freevars, function.__closure__, strict=True))
    outside = {name: cell.cell_contents for name, cell in cells.items()}
    names = set(_names(code))
    for name in sorted(names & function.__globals__.keys()):
        outside[name] = function.__globals__[name]
    for name, module in [(n, m) for n, m in outside.items() if isinstance(m, ModuleType) and not _is_foreign(m)]:
        outside |= {f"{name}.{attribute}": getattr(module, attribute) for attribute in sorted(names & vars(module).keys())}
    settings = [describe(part) for part in (function.__defaults__, function.__kwdefaults__, options)]
    return "function", _name(function), _code_description(code), settings, [(name, describe(part)) for name, part in outside.items()]


def _code_description(code: CodeType) -> Any:
    constants = [_code_description(c) if isinstance(c, CodeType) else _description(c, []) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes, also of functions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _fields(found: Any) -> Iterator[tuple[str, ...]]:
    """The fields of all named tuples among types of arguments."""
    for one in found:
        if isinstance(one, types.BaseNamedTuple):
            yield tuple(one.instance_class._fields)  # type: ignore[attr-defined]
        if isinstance(one, types.BaseTuple):
            yield from _fields(one)


def _is_foreign(value: Any) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return (name or "").partition(".")[0] in FOREIGN


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", getattr(value, "__name__", "")))
