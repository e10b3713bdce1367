"""Tables for people: the same numbers as Markdown and as LaTeX (booktabs).

    densewalk tables --table incontext --out incontext.csv RECORDS      # writes incontext.md and incontext.tex, too

A wide table is condensed to `mean ± interval (published)` in one cell for each metric, with its protocols below it. The tidy table
becomes one line per run, evaluation and metric. Any other is printed as it is.
"""

from pathlib import Path

import pandas as pd

from densewalk.core.files import atomic_write
from densewalk.core.metric import floor_of
from densewalk.core.text.quoting import for_latex, for_latex_label, for_markdown, for_markdown_code, for_shell, one_line
from densewalk.results.significance import about_intervals, fixed
from densewalk.results.tables import SUFFIXES, read_table

FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # smaller where it is wider than the text
NUMBER = r"([-+]?[\d.]+|–)?( [±(].*)?"  # a cell with a number, its interval and the published one


def write_formats(table: Path) -> None:
    """Write a CSV table as Markdown and as LaTeX beside it. LaTeX is for `\\input` in a document that uses booktabs and graphicx."""
    content = read_table(table)
    for suffix, text in ((".md", markdown(content)), (".tex", latex(content, label=for_latex_label(f"tab:{table.stem}")))):
        with atomic_write(table.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; below it what its intervals are over, and the protocols of a wide one."""
    shown = readable(table)
    # not DataFrame.to_markdown, which does not escape the bars and pads every cell to the widest of its column
    head, *rows = [[for_markdown(str(cell)) for cell in line] for line in (list(shown.columns), *shown.to_numpy().tolist())]
    lines = [head, ["---"] * len(head), *rows]
    text = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    below = [f"\n{for_markdown_code(e)} on {for_markdown(d)}: {for_markdown(p)}.\n" for e, d, p in protocols(table)]
    return text + "".join([f"\n{for_markdown(sentence)}\n" for sentence in interval_notes(table)] + below)


def latex(table: pd.DataFrame, label: str) -> str:
    """A LaTeX table with booktabs' rules, columns of numbers right-aligned; its caption is what is below the Markdown table."""
    shown = readable(table).astype(str)  # a column without rows has no type
    notes = [for_latex(sentence) for sentence in interval_notes(table)]
    caption = " ".join(notes + [f"\\texttt{{{for_latex(e)}}} on {for_latex(d)}: {for_latex(p)}." for e, d, p in protocols(table)])
    numbers = [shown[c].str.fullmatch(NUMBER).all() and shown[c].any() for c in shown.columns]
    head, *rows = [[for_latex(str(cell)) for cell in line] for line in (list(shown.columns), *shown.to_numpy().tolist())]
    # not DataFrame.style, which takes five times as long and a gigabyte for 10,000 results
    return "\n".join(
        [
            *_for_a_paper(table),
            r"\begin{table}",
            r"\centering",
            *([f"\\caption{{{caption}}}"] if caption else []),
            f"\\label{{{label}}}",
            FITTED,
            f"\\begin{{tabular}}{{{''.join('r' if is_number else 'l' for is_number in numbers)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _for_a_paper(table: pd.DataFrame) -> list[str]:
    """A comment above a wide table, which holds too much for a paper."""
    metrics = [one_line(m) for m in metrics_of(table) if floor_of(m) is None][:2]
    columns = for_shell(",".join(["run", *metrics]))
    return [f"% the whole table; one for a paper: densewalk tables --columns {columns} --format latex"] if metrics else []


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table that a reader compares."""
    if metrics_of(table):
        return condensed(table)
    if "beyond_interval" in table.columns:
        return gained(table)
    return summary(table) if {"metric", "mean"} <= set(table.columns) else table


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics of a wide table, in order; none of any other."""
    return [c.removesuffix(SUFFIXES[0]) for c in table.columns if c.endswith(SUFFIXES[0])]


def condensed(table: pd.DataFrame) -> pd.DataFrame:
    """A wide table's columns that a reader compares: what was run, on what, and `mean ± interval (published)` for each metric."""
    constant = [c for c in ("compat", "evaluation") if table[c].nunique() <= 1]
    shown = [c for c in ("run", "method", "init", "arch", "compat", "evaluation", "dataset", "seeds") if c not in constant]
    numbers = {m: _numbers(table, [m, *(m + suffix for suffix in SUFFIXES[:2])]) for m in metrics_of(table)}
    return table[shown].assign(**numbers)


def gained(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of gain.csv that a reader compares."""
    shown = table[["run", "kind", "evaluation", "metric", "value", "against", "reference"]]
    difference = [d + (f" ± {half}" if half else "") for d, half in zip(table["difference"], table["ci95"], strict=True)]
    return shown.assign(difference=difference, beyond_interval=table["beyond_interval"], seeds=table["seeds"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The tidy table without its seeds: one line per run, evaluation and metric; GPU-hours are the mean over the seeds."""
    keys = ["run", "method", "init", "arch", "compat", "evaluation", "metric", "seeds"]
    once = table.drop_duplicates(keys)
    hours = table.assign(hours=pd.to_numeric(table["training_gpu_hours"])).groupby(keys, sort=False)["hours"].mean()
    return once[keys].assign(value=_numbers(once, ["mean", "ci95", "published"]), gpu_hours=[fixed(float(h), 4) for h in hours])


def _numbers(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """Each row's mean with its interval and the published value, as far as they are known."""
    return [
        (mean or "–") + (f" ± {interval}" if interval else "") + (f" (published {published})" if published else "")
        for mean, interval, published in table.reindex(columns=columns, fill_value="").itertuples(index=False)
    ]


def interval_notes(table: pd.DataFrame) -> list[str]:
    """What the intervals of a table are over; nothing for a table without any."""
    if metrics := metrics_of(table):
        has_any = (table[[m + SUFFIXES[0] for m in metrics]] != "").any(axis=None)
        return [about_intervals(zip(table["evaluation"], table["n"], table["unit"], strict=True))] if has_any else []
    if "beyond_interval" in table.columns and (table["ci95"] != "").any():
        return ["Intervals are over training seeds; those over test units are in the CSV file: units_low and units_high."]
    return []


def protocols(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Evaluation, data set and protocol of a wide table's rows, each once."""
    return list(dict.fromkeys(zip(table["evaluation"], table["dataset"], table["protocol"], strict=True))) if metrics_of(table) else []
