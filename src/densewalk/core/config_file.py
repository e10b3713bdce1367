"""Read a configuration in YAML or JSON, strictly: a key that stands there twice is an error. Free of torch."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from densewalk.core.errors import UserError
from densewalk.core.text.quoting import one_line

MOST_SHOWN = 40  # letters of a key or text in a message
MOST_VALUES = 1_000_000  # of a file after its aliases are resolved; a few lines of them can stand for billions
NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*|[0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.(inf|nan))", re.IGNORECASE)
# what PyYAML's constructors raise beside its own errors, for instance for a date in month 13 or a number of 5,000 digits
BROKEN = (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a file as a dictionary.

    Raises:
        UserError: no such file, neither YAML nor JSON, no mapping, or a key that stands in a mapping twice; with its line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder", todo=f"name the file in it: {Path(path) / 'config.yaml'}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: {error}", todo="save it as UTF-8") from error
    content = _parsed(text, path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}", allowed="keys with values, such as `study: My study`")
    return content


def _parsed(text: str, path: str | Path) -> Any:
    # a tab is white space in JSON and an error in YAML, and duplicates are told apart from other errors
    if text.lstrip("\ufeff \t\r\n").startswith("{") and (found := _json(text, path)) is not None:
        return found
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if twice := next(_repeated_keys(node), None):
                raise UserError(f"{path} has a key twice: {twice}", todo="remove one of them")
            _require_size(node, path)
            _require_decimals(node, path)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except BROKEN as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{path} is not YAML: {reason[:300]}") from error


def _json(text: str, path: str | Path) -> Any:
    """The content if it is JSON, else None: YAML looks like it."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise UserError(f"{path} has a key twice: {twice}", todo="remove one of them")
        return dict(pairs)

    try:
        return json.loads(text.lstrip("\ufeff"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None


def _repeated_keys(node: yaml.Node) -> Iterator[str]:
    """Keys that stand in a mapping twice, with both lines; each node once, however many aliases it has."""
    seen, waiting = set(), [("", node)]
    while waiting:
        place, current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, yaml.SequenceNode):
            waiting += [(f"{place}.{i}" if place else str(i), item) for i, item in enumerate(current.value)]
        elif isinstance(current, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in current.value:
                name = f"{place}.{key.value}" if place and isinstance(key, yaml.ScalarNode) else str(key.value)
                if isinstance(key, yaml.ScalarNode):
                    line, identity = key.start_mark.line + 1, (key.tag, key.value)
                    if identity in lines:
                        yield f"{name} (lines {lines[identity]} and {line})"
                    lines.setdefault(identity, line)
                waiting.append((name, value))


def _require_size(node: yaml.Node, path: str | Path) -> None:
    """Refuse aliases of themselves, and aliases of aliases that stand for more than a million values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(current: yaml.Node) -> int:
        if id(current) in open_nodes:
            raise UserError(f"{path}: a mapping or list holds itself (line {current.start_mark.line + 1})")
        if id(current) not in sizes:
            open_nodes.add(id(current))
            inner: list[yaml.Node] = []
            if isinstance(current, yaml.SequenceNode):
                inner = current.value
            elif isinstance(current, yaml.MappingNode):
                inner = [part for pair in current.value for part in pair]
            sizes[id(current)] = 1 + sum(map(size, inner))
            open_nodes.discard(id(current))
        return sizes[id(current)]

    if size(node) > MOST_VALUES:
        raise UserError(f"{path} holds {size(node):.3g} values, aliases resolved", allowed=f"{MOST_VALUES:,}")


def _require_decimals(node: yaml.Node, path: str | Path) -> None:
    """Refuse 010 (8 to YAML, 10 to people), 1:30 (90), 0x10 and 0b1."""
    seen, waiting = set(), [node]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, yaml.SequenceNode):
            waiting += current.value
        elif isinstance(current, yaml.MappingNode):
            waiting += [part for pair in current.value for part in pair]
        elif current.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and current.value and not DECIMAL.fullmatch(current.value):
            found = (
                f"{path}, line {current.start_mark.line + 1}: YAML takes {current.value[:MOST_SHOWN]!r} for another number than it shows"
            )
            raise UserError(found, allowed="decimal numbers, such as 10, 0.5 or 1.0e-3", todo="write it so, or in quotes if it is a text")


def not_plain(value: Any, key: str = "") -> Iterator[str]:
    """Name the texts with line breaks or other control characters, and the whole numbers beyond 64 bits, each with its key."""
    if isinstance(value, str) and (found := NOT_PLAIN.search(value)):
        kind = "a line break" if found[0] in "\r\n\u2028\u2029" else "a control character"
        yield f"{key}: {kind} in a text (found {value[:MOST_SHOWN]!r})"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield f"{key}: a whole number of {value.bit_length()} bits; allowed: at most 63, which is up to about 9.2e18"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        place = f"{key}.{one_line(str(name))[:MOST_SHOWN]}" if key else one_line(str(name))[:MOST_SHOWN]
        if isinstance(name, str) and NOT_PLAIN.search(name):
            yield f"{key or 'the file'}: a line break or control character in the key {name[:MOST_SHOWN]!r}"
        yield from not_plain(inner, place)
