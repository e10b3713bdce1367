"""A network of the user's own, by the name of the function that builds it. Free of torch; nothing of the user's runs here.

mypackage.mynet:build     `build` of that module, which lies in the study's folder or where Python finds it
code/mynet.py:build       the same by its file

As the name of an architecture it has `python/` before it.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.core.text.complaints import did_you_mean

OWN = "python/"
FORMS = "package.module:function, or folder/file.py:function"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILE = re.compile(r"[^:{}]*[A-Za-z_]\w*\.py:[A-Za-z_]\w*")


@dataclass(frozen=True)
class OwnCode:
    """Where a function is: its module's dotted name, the folder in which that name starts, and the module's file."""

    module: str
    function: str
    root: Path
    file: Path

    @property
    def sha256(self) -> str:
        """Of the file alone: what it imports is not in it."""
        return file_sha256(self.file)


def is_own_code(text: str) -> bool:
    """True for what has the form of such a name, without `python/`."""
    return _MODULE.fullmatch(text) is not None or _FILE.fullmatch(text) is not None


def known_form(text: str) -> str:
    """The name, for a field of a study; ValueError if it has another form."""
    if not is_own_code(text):
        raise ValueError(f"'{text}' is not the name of a function; allowed: {FORMS}")
    return text


def find_code(name: str) -> OwnCode:
    """Find the file of a function, with or without `python/` before its name, seen from the working directory.

    A module is looked for in that folder, then where Python looks, then in the folder above: a study's folder lies in its project's.

    Raises:
        UserError: there is no such file.
    """
    text = known_form(name.removeprefix(OWN))
    where, _, function = text.rpartition(":")
    if where.endswith(".py"):
        return _by_file(Path(where), function)
    if (found := _by_module(where, Path.cwd(), sys.path)) is not None:
        return OwnCode(where, function, *found)
    raise UserError(
        f"there is no module {where} for the network {text}",
        allowed=f"a module in {Path.cwd()} (the study's folder), in the folder above it or in a folder of PYTHONPATH",
        todo="correct the name, or name the file: folder/file.py:function",
    )


def require_function(code: OwnCode) -> None:
    """Make sure, by its text alone, that the module binds the function's name; nothing of it runs.

    Raises:
        UserError: the file is no Python, or binds no such name. A module with `import *` or `__getattr__` may have any.
    """
    try:
        tree = ast.parse(code.file.read_bytes(), str(code.file))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{code.file} is no Python: {error}", todo="correct it") from error
    names = set(_bound(tree.body))
    if not {code.function, "*", "__getattr__"} & names:
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        near = did_you_mean(code.function, functions)
        raise UserError(f"{code.file} has no function {code.function}{near}", allowed=", ".join(functions) or "none: it has no function")


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that statements bind, not those inside of functions and classes; `*` for all of another module."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            yield from _bound(ast.iter_child_nodes(node))


def module_file(module: str, folder: Path) -> Path | None:
    """The file that jobs in a study's folder find for a module, wherever this process was started; None if they find none."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = str(Path.cwd())  # where `python -m` looks, too
    found = _by_module(module, folder, [place for place in sys.path if place != here or here in named])
    return found[1] if found else None


def _by_module(module: str, folder: Path, places: Sequence[str]) -> tuple[Path, Path] | None:
    """The folder in which a module's dotted name starts, and its file. places: where Python looks."""
    parts = Path(*module.split("."))
    for root in [folder, *(Path(place) for place in places if place), folder.parent]:
        for file in (root / parts.with_suffix(".py"), root / parts / "__init__.py"):
            if file.is_file():
                return root, file
    return None


def _by_file(path: Path, function: str) -> OwnCode:
    """The module of a file: its name starts above the folders that are packages."""
    if not path.is_file():
        raise UserError(
            f"there is no file {path} for the network {path}:{function}", todo="correct the path, which begins in the study's folder"
        )
    file = path.resolve()
    root, names = file.parent, [] if file.name == "__init__.py" else [file.stem]
    while (root / "__init__.py").is_file():
        root, names = root.parent, [root.name, *names]
    return OwnCode(".".join(names), function, root, file)
