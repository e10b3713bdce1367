"""Compiled functions on disk are found again, unless what they took from another file has changed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from densewalk.ops.cpu.compiled import compiled
from densewalk.ops.cpu.kernel_cache import KernelCache

OURS = "from densewalk.ops.cpu.compiled import compiled"
PLAIN = "import numba\ncompiled = lambda: numba.njit(cache=True)"
CONSTANTS = """
from typing import NamedTuple
import numpy as np
FACTOR = 2.0
SETTINGS = {"power": 2}
TABLE = np.array([2, 4])

class Pair(NamedTuple):
    first: float
    second: float
"""
HELPERS = """
DECORATOR
from numba.extending import intrinsic

@compiled()
def scaled(x):
    return 2 * x

@intrinsic
def negated(context, x):
    return x(x), lambda context, builder, signature, values: builder.fneg(values[0])
"""
KERNELS = """
DECORATOR
from package import constants
from package.constants import FACTOR, TABLE, Pair
from package.helpers import negated, scaled
DERIVED = FACTOR + constants.SETTINGS["power"]

@compiled()
def constant(x):
    return FACTOR * x

@compiled()
def derived(x):
    return DERIVED * x

@compiled()
def attribute(x):
    return constants.FACTOR * x

@compiled()
def table(x):
    return TABLE[1] * x

@compiled()
def called(x):
    return later(x)

@compiled()
def built(x):
    return negated(x)

@compiled()
def field(pair):
    return pair.first

@compiled()
def later(x):
    return scaled(x)
"""
MAIN = """
import json
from package import kernels
calls = {name: getattr(kernels, name) for name in ("constant", "derived", "attribute", "table", "called", "built", "field")}
values = {name: call(kernels.Pair(first=3.0, second=5.0) if name == "field" else 3.0) for name, call in calls.items()}
print(json.dumps([values, {name: sum(call.stats.cache_hits.values()) for name, call in calls.items()}]))
"""
BEFORE = {"constant": 6.0, "derived": 12.0, "attribute": 6.0, "table": 12.0, "called": 6.0, "built": -3.0, "field": 3.0}
AFTER = {"constant": 9.0, "derived": 18.0, "attribute": 9.0, "table": 15.0, "called": 9.0, "built": 3.0, "field": 3.0}


def write(folder, decorator):
    for name, text in (("__init__", ""), ("constants", CONSTANTS), ("helpers", HELPERS), ("kernels", KERNELS)):
        (folder / f"{name}.py").write_text(text.replace("DECORATOR", decorator))


def change(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def values_and_hits(folder):
    """In a new process, which writes no bytecode: Python takes a file of the same second and size for the same."""
    command = [sys.executable, "-B", "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{MAIN}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("decorator", [OURS, PLAIN], ids=["ours", "numba's"])
def test_what_changes_in_another_file_is_compiled_again(tmp_path, decorator):
    package = tmp_path / "package"
    package.mkdir()
    write(package, decorator)
    assert values_and_hits(tmp_path) == [BEFORE, dict.fromkeys(BEFORE, 0)]
    assert values_and_hits(tmp_path) == [BEFORE, dict.fromkeys(BEFORE, 1)], "found again"
    fields = ("    first: float\n    second: float", "    second: float\n    first: float")
    change(package / "constants.py", ("FACTOR = 2.0", "FACTOR = 3.0"), ('"power": 2', '"power": 3'), ("[2, 4]", "[2, 5]"), fields)
    change(package / "helpers.py", ("2 * x", "3 * x"), ("builder.fneg(values[0])", "values[0]"))
    changed, hits = values_and_hits(tmp_path)
    if decorator == OURS:
        assert (changed, hits) == (AFTER, dict.fromkeys(AFTER, 0))
    else:
        assert changed == BEFORE | {"field": 5.0}, "numba's own cache would do, and so would kernel_cache.py be needless"


def key(kernel):
    """The part of a kernel's key that is ours, for no arguments."""

    class Codegen:
        def magic_tuple(self):
            return ()

    return KernelCache(kernel)._index_key((), Codegen())[-1]


LEVEL = np.float32(1)


def test_the_type_of_a_constant_and_the_compilers_options_count(monkeypatch):
    def level():
        return LEVEL

    first = compiled()(level)
    assert key(first) == key(compiled()(level))
    assert key(first) != key(compiled(fastmath={"contract"})(level))
    before = key(first)
    monkeypatch.setitem(globals(), "LEVEL", 1.0)
    assert key(first) != before
    monkeypatch.setitem(globals(), "LEVEL", object())
    with pytest.raises(AssertionError, match="it uses <object object"):
        key(first)


def test_functions_that_call_each_other_have_a_key():
    @compiled()
    def down(n):
        return down(n - 1) if n > 0 else np.pi

    assert key(down) == key(down)
    assert down(3) == np.pi
