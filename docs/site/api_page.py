"""The page of the Python API for the site, from signatures and docstrings of `import densewalk` (mkdocs calls `on_files`).

Docstrings have this form; `sections` reads it:

    First sentence.

    Args:                     or Attributes, Raises: a table, one line or more for each name
        name: meaning,
            continued.
    Returns:                  text
    Example:                  code
"""

import html
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

PATH = "api.md"
TITLES = ("Args", "Attributes", "Returns", "Raises", "Example")
ORDER = ("load", "create", "wrap", "Network", "protocols", "evaluate", "Evaluation", "UserError", "__version__")
METHODS = ("dense", "pooled", "require_abilities")  # of a network
INTRODUCTION = """# Python API

    import densewalk as dw

Every name below is an attribute of `dw`, but for `Network` and `UserError`. [From Python](python.md) shows how they work together.

"""


def sections(docstring: str) -> dict[str, str]:
    """Title -> text without its indentation; the part before the first title is `""`."""
    found = {"": ""}
    title = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if line.removesuffix(":") in TITLES and line.endswith(":"):
            title = line.removesuffix(":")
            found[title] = ""
        else:
            found[title] += f"{line}\n"
    return {name: textwrap.dedent(text).strip() for name, text in found.items()}


def entries(text: str) -> dict[str, str]:
    """Name -> meaning, of a section of names; further lines of a meaning stand further to the right."""
    found = {}
    for entry in re.split(r"\n(?=\S)", text):
        name, _, meaning = entry.partition(":")
        found[name] = " ".join(meaning.split())
    return found


def cell(text: str) -> str:
    """Text for a cell of a table: outside of code, nothing in it ends the cell or begins HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False).replace("|", "\\|") for part in parts)


def type_name(annotation: Any) -> str:
    """An annotation as it is written, without modules and quotation marks, `or` between alternatives."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text.replace("'", "").replace('"', ""))
    return text.replace(" | ", " or ")


def row(name: str, below: str, meaning: str) -> str:
    """A line of a table: two columns also fit a phone."""
    return f"| **`{name}`**<br>{below} | {cell(meaning)} |"


def parameter_rows(function: Callable[..., Any], meanings: dict[str, str]) -> Iterator[str]:
    """A line for each parameter: name, type, default and meaning."""
    yield from ("| parameter | meaning |", "|---|---|")
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "self":
            several = parameter.kind is parameter.VAR_KEYWORD
            default = "" if several else ", required" if parameter.default is parameter.empty else f", default `{parameter.default!r}`"
            yield row(f"**{name}" if several else name, f"`{type_name(parameter.annotation)}`{default}", meanings[name])


def signature(name: str, function: Callable[..., Any]) -> str:
    """The call with its keyword-only parameters after the star, as Python has it, one line or one for each parameter."""
    parts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        if parameter.name != "self":
            default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
            parts.append(f"{'**' if parameter.kind is parameter.VAR_KEYWORD else ''}{parameter.name}{default}")
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 60 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def described(function: Callable[..., Any], call: str) -> list[str]:
    """Signature, description, parameters, what comes back, errors and an example of a function."""
    parts = sections(function.__doc__ or "")
    lines = ["```python", signature(call, function), "```", "", parts[""], ""]
    if "Args" in parts:
        lines += [*parameter_rows(function, entries(parts["Args"])), ""]
    if "Returns" in parts:
        lines += [f"**Returns** `{type_name(inspect.signature(function).return_annotation)}`: {parts['Returns']}", ""]
    return [*lines, *ends(parts)]


def ends(parts: dict[str, str]) -> list[str]:
    """Errors and the example."""
    lines = [f"**Raises** `{name}`: {meaning}\n" for name, meaning in entries(parts["Raises"]).items()] if "Raises" in parts else []
    if "Example" in parts:
        lines += ["**Example**", "", "```python", parts["Example"], "```", ""]
    return lines


def class_lines(thing: type) -> list[str]:
    """Description and attributes of a class."""
    parts = sections(thing.__doc__ or "")
    types = {name: kind for parent in reversed(thing.__mro__) for name, kind in vars(parent).get("__annotations__", {}).items()}
    lines = [parts[""], ""]
    if "Attributes" in parts:
        lines += ["| attribute | meaning |", "|---|---|"]
        meanings = entries(parts["Attributes"])
        lines += [row(name, f"`{type_name(types[name])}`" if name in types else "", text) for name, text in meanings.items()]
    return [*lines, "", *ends(parts)]


def things() -> dict[str, Any]:
    """Everything that the page describes: the names of `densewalk`, and the two that its functions give or raise."""
    import densewalk
    from densewalk.core.errors import UserError
    from densewalk.models.interface import Network

    named = {name: getattr(densewalk, name) for name in densewalk.__all__}
    return {name: {**named, "Network": Network, "UserError": UserError}[name] for name in [*ORDER, *sorted({*named} - {*ORDER})]}


def page() -> str:
    """The page's Markdown."""
    lines = [INTRODUCTION]
    for name, thing in things().items():
        lines += ["## " + name.replace("_", "\\_"), ""]
        if isinstance(thing, str):
            lines += [f"Version of densewalk, as results record it: `{thing}`.", ""]
        elif isinstance(thing, type):
            lines += class_lines(thing)
            if name == "Network":
                for method in METHODS:
                    lines += [f"### {name}.{method}", "", *described(getattr(thing, method), f"network.{method}")]
        else:
            lines += described(thing, f"dw.{name}")
    return "\n".join(lines)


def on_files(files: "Files", config: Any) -> "Files":
    """Add the page to those of the folder."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PATH, content=page()))
    return files
