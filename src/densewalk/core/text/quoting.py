"""Text that a user chose, made harmless for what it is written into: one function for each target. Free of torch.

The page's text is escaped by its templates (jinja2 with `autoescape`, markupsafe's `Markup.format`).
"""

import re
import shlex

# a number as the tables print it; only such a cell may begin with a sign
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
RISKY = "'=+-@\t\r\n＝＋－＠"
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # what a spreadsheet computes, also behind apostrophes that mark text
# of `&` only what would begin an entity: a terminal shows Markdown as it is
MARKDOWN = re.compile(r"[\\`*\[\]<>|~$#!]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # a row that begins with one of them would be an option of the line break before it
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    # signs beyond ASCII that the tables use
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "…": r"\ldots{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def for_shell(text: str) -> str:
    """A word of a shell command."""
    return shlex.quote(text)


def for_double_quotes(command: str) -> str:
    """A shell command that somebody puts between double quotes, and who escapes nothing in it but these."""
    return re.sub(r"([\\$`])", r"\\\1", command)


def for_snakemake(text: str) -> str:
    """Text inside a command that Snakemake formats: its braces are doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def for_csv(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe marks it as text. Numbers stay as they are."""
    return f"'{cell}" if cell[:1] in RISKY and FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def from_csv(cell: str) -> str:
    """The text of such a cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def for_markdown(text: str) -> str:
    """Text inside a line or a table of Markdown; line breaks become blanks."""
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return MARKDOWN.sub(lambda found: entities.get(found[0], f"\\{found[0]}"), one_line(text))


def for_markdown_code(text: str) -> str:
    """Text between backticks, which cannot be escaped there."""
    return "`" + one_line(text).replace("`", "'") + "`"


def for_latex(text: str) -> str:
    """Text of a LaTeX document, for every engine as far as it is ASCII."""
    apart = re.sub(r"-(?=-)", "-\0", one_line(text))  # two hyphens would become a dash
    return "".join(LATEX.get(sign, sign) for sign in apart).replace("\0", "{}")


def for_latex_label(text: str) -> str:
    """The name of a `\\label`."""
    return re.sub(r"[^\w:.-]", "-", text, flags=re.ASCII)


def one_line(text: str) -> str:
    """The text with control characters and line breaks as single blanks."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
