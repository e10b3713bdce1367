"""What goes wrong in a file: a value of another kind, a key too many or too few, bytes that flip, an end that is missing."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD = [
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, 2**64, 10**9, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
    *("", " ", "a", "0", "1", "-1", "1e-3", ".inf", "nan", "random", "none", "../x", "/", "~", "a/b", "-a", "=1", "{x}", "{0}", "$(x)"),
    *("a\nb", "a\rb", "\0", "\ud800", "é", "x" * 300, "vit_nano_patch16", "walk", "dora", "start", "coco", "davis", "00000000000g"),
    *([], [[]], [None], ["a", "a"], [0], [-1], [1, 1], [0, 1], [[0, 1]], [1.5], [True], [float("nan")], {}, {"": 1}, {"a": None}),
    *({"a": {"a": {"a": 1}}}, {"kind": "run"}, {"kind": "random"}, {"x": float("inf")}, {"method": "none"}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def damaged(draw: Any, original: Any, most: int = 3) -> Any:
    """A copy of a nested value with one to `most` faults."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, most))):
        *parents, key = draw(st.sampled_from(list(places(value)) or [(0,)]))
        holder = value
        for parent in parents:
            holder = holder[parent]
        kind = draw(st.sampled_from(("replace", "replace", "replace", "delete", "add", "copy")))
        try:
            if kind == "replace":
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            elif kind == "delete":
                del holder[key]
            elif kind == "add" and isinstance(holder, dict):
                holder[draw(st.sampled_from(("a", "", "seed", "run", "x" * 300, "é", "a\nb")))] = draw(st.sampled_from(ODD))
            else:  # what stands elsewhere in the file
                source = value
                for part in draw(st.sampled_from(list(places(value)))):
                    source = source[part]
                holder[key] = copy.deepcopy(source)
        except (IndexError, KeyError, TypeError):
            continue
        if not isinstance(value, dict) or not value:
            break
    return value


@st.composite
def damaged_bytes(draw: Any, original: bytes, most: int = 8) -> bytes:
    """A copy with bytes that were changed, left out or put in, or without its end."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, most))):
        if not content:
            break
        at = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(("flip", "flip", "flip", "cut", "drop", "insert", "repeat")))
        if kind == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 200))]
    return bytes(content)
