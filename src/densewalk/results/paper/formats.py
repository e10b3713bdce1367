"""A table for a paper as LaTeX (booktabs), Markdown or CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from itertools import groupby

from densewalk.core.text.quoting import for_csv, for_latex, for_markdown
from densewalk.results.paper.tables import Cell, PaperTable

# characters that a column of a two-column paper holds (240 pt) by the size of its letters; a wider table goes over both columns
SIZES = ((r"\small", 51), (r"\footnotesize", 58))
WIDEST = (r"\small", 106)
GAP = 1.9  # characters between two columns of 4 pt on either side


def latex(table: PaperTable) -> str:
    """A table of booktabs' rules that fits a column of a paper, or both; numbers are right-aligned."""
    width = table_width(table)
    size = next((size for size, most in SIZES if width <= most), None)
    environment = "table" if size else "table*"
    grouped = any(group for group, _ in table.heads)
    lines = [
        f"\\begin{{{environment}}}[t]",
        r"\centering",
        *([f"\\caption{{{' '.join(for_latex(sentence) for sentence in table.caption)}}}"] if table.caption else []),
        size or (WIDEST[0] if width <= WIDEST[1] else r"\scriptsize"),
        r"\setlength{\tabcolsep}{4pt}",
        f"\\begin{{tabular}}{{@{{}}{''.join('r' if number else 'l' for number in table.numeric)}@{{}}}}",
        r"\toprule",
        *(_group_lines(table.heads) if grouped else []),
        " & ".join(for_latex(name) for _, name in table.heads) + r" \\",
        r"\midrule",
        *(_latex_row(row) for row in table.rows),
        *([r"\midrule"] if table.rows and table.floors else []),
        *(_latex_row(row) for row in table.floors),
        r"\bottomrule",
        r"\end{tabular}",
        f"\\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


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


def _latex_row(row: Sequence[Cell]) -> str:
    return " & ".join(_latex_cell(cell) for cell in row) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = f"\\textbf{{{for_latex(cell.text)}}}" if cell.best else for_latex(cell.text)
    return text + (f"$_{{\\pm {cell.interval}}}$" if cell.interval else "")


def table_width(table: PaperTable) -> float:
    """The width of a table in characters: of each column its widest cell, and the gaps."""
    widths = [float(len(name)) for _, name in table.heads]
    for row in [*table.rows, *table.floors]:
        widths = [max(width, _width(cell)) for width, cell in zip(widths, row, strict=True)]
    return sum(widths) + GAP * (len(widths) - 1)


def _width(cell: Cell) -> float:
    """An interval is a subscript, with smaller letters."""
    return len(cell.text) + (0.75 * (len(cell.interval) + 1) if cell.interval else 0)


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
