"""A table for a paper as LaTeX (booktabs), Markdown or CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from itertools import groupby

from densewalk.core.text.quoting import for_csv, for_latex, for_markdown
from densewalk.results.paper.tables import Cell, PaperTable

# sizes of letters: digits, and digits of a subscript, in pt of Computer Modern, the widest face of the templates
SIZES = {r"\small": (4.63, 3.67), r"\footnotesize": (4.25, 3.67), r"\scriptsize": (3.99, 3.41)}
COLUMN, BOTH = 236.0, 487.0  # pt: a column of the usual two-column templates, and both with what is between
GAP = 8.0  # pt between two columns
# letters' widths in digits; of those that are not named, and of other capitals
WIDTHS = {"ijlf.,:;'!|": 0.6, " -_I": 0.7, "rst()[]": 0.79, "cez": 0.89, "0123456789ago/": 1.0, "w&=+": 1.5, "m%@": 1.7, "MW": 2.06}
LETTERS = {letter: width for letters, width in WIDTHS.items() for letter in letters}
OTHER, CAPITAL, BOLD = 1.1, 1.47, 1.15
Subscripts = list[str]  # of each column its widest interval, empty without any


def latex(table: PaperTable) -> str:
    """A table of booktabs' rules that fits a column of a paper, or both; numbers are right-aligned, the last digits one below another."""
    fitting = [(name, size) for name, most in (("table", COLUMN), ("table*", BOTH)) for size in SIZES if table_width(table, size) <= most]
    narrow = [size for name, size in fitting if name == "table" and size != r"\scriptsize"]
    environment = "table" if narrow else "table*"
    size = next(iter(narrow or [size for name, size in fitting if name == environment]), r"\scriptsize")
    grouped = any(group for group, _ in table.heads)
    subscripts = _subscripts(table)
    lines = [
        *([] if fitting else [f"% wider than {BOTH:.0f} pt: choose fewer columns"]),
        f"\\begin{{{environment}}}[t]",
        r"\centering",
        r"\setlength{\belowcaptionskip}{4pt}",
        *([f"\\caption{{{' '.join(for_latex(sentence) for sentence in table.caption)}}}"] if table.caption else []),
        size,
        rf"\setlength{{\tabcolsep}}{{{GAP / 2:.0f}pt}}",
        f"\\begin{{tabular}}{{@{{}}{''.join('r' if number else 'l' for number in table.numeric)}@{{}}}}",
        r"\toprule",
        *(_group_lines(table.heads) if grouped else []),
        " & ".join(_latex_head(table, i, subscripts[i]) for i in range(len(table.heads))) + r" \\",
        r"\midrule",
        *(_latex_row(row, subscripts) for row in table.rows),
        *([r"\midrule"] if table.rows and table.floors else []),
        *(_latex_row(row, subscripts) for row in table.floors),
        r"\bottomrule",
        r"\end{tabular}",
        f"\\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


def _subscripts(table: PaperTable) -> Subscripts:
    rows = [*table.rows, *table.floors]
    return [max((row[i].interval for row in rows), key=len, default="") for i in range(len(table.heads))]


def _latex_head(table: PaperTable, i: int, subscript: str) -> str:
    """A column's name without underscores, above the numbers' last digits if there is room for it."""
    name = table.heads[i][1].replace("_", " ")
    has_room = all(_letters(name) <= _letters(row[i].text) for row in table.rows)
    return for_latex(name) + (_space(subscript) if has_room else "")


def _space(subscript: str) -> str:
    """Room as wide as an interval."""
    return f"\\phantom{{$_{{\\pm {subscript}}}$}}" if subscript else ""


def _group_lines(heads: Sequence[tuple[str, str]]) -> list[str]:
    """The names of the groups over their columns, and a rule below each."""
    cells, rules, place = [], [], 1
    for group, columns in groupby(heads, key=lambda head: head[0]):
        count = len(list(columns))
        cells.append(f"\\multicolumn{{{count}}}{{c}}{{{for_latex(group)}}}" if group else " & ".join([""] * count))
        if group:
            rules.append(f"\\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _latex_row(row: Sequence[Cell], subscripts: Subscripts) -> str:
    return " & ".join(_latex_cell(*pair) for pair in zip(row, subscripts, strict=True)) + r" \\"


def _latex_cell(cell: Cell, subscript: str) -> str:
    """A cell; beside intervals of more digits it has room for them, so that numbers stand one below another."""
    text = f"\\textbf{{{for_latex(cell.text)}}}" if cell.best else for_latex(cell.text)
    if not cell.interval:
        return text + (_space(subscript) if cell.text else "")
    lacking = len(subscript) - len(cell.interval)
    return f"{text}$_{{\\pm {cell.interval}}}$" + (f"\\phantom{{$_{{{'0' * lacking}}}$}}" if lacking else "")


def table_width(table: PaperTable, size: str) -> float:
    """About the width of a table in pt: of each column its widest cell, the gaps, and what a group's name needs more than its columns."""
    digit, small = SIZES[size]
    widths = []
    for i, (_, name) in enumerate(table.heads):
        cells = [row[i] for row in [*table.rows, *table.floors]]
        interval = max((small * (1.5 + _letters(cell.interval)) for cell in cells if cell.interval), default=0.0)
        text = max((digit * _letters(cell.text) * (BOLD if cell.best else 1) for cell in cells), default=0.0)
        widths.append(max(digit * _letters(name), text + interval))
    total, place = sum(widths) + GAP * (len(widths) - 1), 0
    for group, columns in groupby(table.heads, key=lambda head: head[0]):
        count = len(list(columns))
        own = sum(widths[place : place + count]) + GAP * (count - 1)
        total += max(0.0, digit * _letters(group) - own)
        place += count
    return total


def _letters(text: str) -> float:
    """The width of a text in digits."""
    return sum(LETTERS.get(letter, CAPITAL if letter.isupper() else OTHER) for letter in text)


def markdown(table: PaperTable) -> str:
    """A Markdown table with its caption below."""

    def cell_text(cell: Cell) -> str:
        text = for_markdown(cell.text)
        return (f"**{text}**" if cell.best else text) + (f" ± {cell.interval}" if cell.interval else "")

    heads = [for_markdown(f"{name}, {group}" if group else name) for group, name in table.heads]
    rows = [heads, ["---:" if number else "---" for number in table.numeric]]
    rows += [[cell_text(cell) for cell in row] for row in [*table.rows, *table.floors]]
    lines = ["| " + " | ".join(row) + " |\n" for row in rows]
    return "".join(lines) + "".join(f"\n{for_markdown(sentence)}\n" for sentence in table.caption)


def comma_separated(table: PaperTable) -> str:
    """A CSV whose intervals are columns of their own; a number that is not known is an empty cell."""
    heads = [f"{name}, {group}" if group else name for group, name in table.heads]
    rows = [[("" if cell.text == "–" else cell.text, cell.interval) for cell in row] for row in [*table.rows, *table.floors]]
    lines = [[(head, f"{head} ci95") for head in heads], *rows]
    with_interval = [any(row[i][1] for row in rows) for i in range(len(heads))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in lines:
        cells = [text for cell, both in zip(line, with_interval, strict=True) for text in (cell if both else cell[:1])]
        writer.writerow([for_csv(text) for text in cells])
    return buffer.getvalue()


FORMATS: dict[str, Callable[[PaperTable], str]] = {"latex": latex, "markdown": markdown, "csv": comma_separated}
