"""The docstrings of a class's attributes, read from its source file when they are asked for: most commands and jobs need none of them."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Attribute -> the text below it, of a class and its bases; the nearest one counts."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found.update(_own(base))
    return found


@cache
def _own(cls: type) -> dict[str, str]:
    try:
        file = inspect.getsourcefile(cls)
    except (TypeError, OSError):  # built in, or written at a prompt
        file = None
    node = _classes(file).get(cls.__qualname__.replace("<locals>.", "")) if file and Path(file).exists() else None
    if node is None:
        return {}
    return {
        attribute.target.id: inspect.cleandoc(text.value.value)
        for attribute, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    return dict(_inside(ast.parse(Path(file).read_text(encoding="utf-8")), ""))


def _inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Qualified name and node of each class, those in functions, too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if isinstance(child, ast.ClassDef):
                yield prefix + child.name, child
            yield from _inside(child, f"{prefix}{child.name}.")
        else:
            yield from _inside(child, prefix)
