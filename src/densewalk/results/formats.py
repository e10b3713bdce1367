"""Tables for people: the same numbers as Markdown and as LaTeX (booktabs).

    densewalk tables --table incontext --out incontext.csv RECORDS      # writes incontext.md and incontext.tex, too

A wide table is condensed to what a reader compares, `mean ± interval (published)` in one cell for each metric, its protocols
below it. The tidy table becomes one line per run, evaluation and metric. Any other is printed as it is.
"""

import re
from pathlib import Path

import pandas as pd

from densewalk.core.files import atomic_write
from densewalk.results.tables import SUFFIXES, fixed, read_table


def write_markdown(table: Path, path: Path) -> None:
    """A CSV table as Markdown."""
    _write(path, markdown(read_table(table)))


def write_latex(table: Path, path: Path) -> None:
    """A CSV table as LaTeX, for `\\input` in a document that uses booktabs; its label is `tab:` and the file's name."""
    _write(path, latex(read_table(table), label=f"tab:{table.stem}"))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table, and the protocols of a wide one below it."""
    shown = readable(table)
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    text = "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return text + "".join(f"\n`{e}` on {d}: {p}.\n" for e, d, p in protocols(table))


def latex(table: pd.DataFrame, label: str) -> str:
    """A LaTeX table with booktabs' rules; the protocols of a wide one are its caption."""
    shown = readable(table)
    style = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    tabular = style.to_latex(hrules=True, column_format="l" * len(shown.columns))
    caption = " ".join(f"\\texttt{{{escaped(e)}}} on {escaped(d)}: {escaped(p)}." for e, d, p in protocols(table))
    lines = ["\\begin{table}", "\\centering", *([f"\\caption{{{caption}}}"] if caption else []), f"\\label{{{label}}}"]
    return "\n".join([*lines, _signs(tabular).rstrip(), "\\end{table}", ""])


def escaped(text: str) -> str:
    """Text with LaTeX's special signs escaped."""
    return _signs(re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", "/").replace("~", " ").replace("^", " ")))


def _signs(text: str) -> str:
    return text.replace("±", "$\\pm$").replace("–", "--").replace("×", "$\\times$")


# -- what a reader compares --------------------------------------------------------------------------------------------


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table that a reader compares."""
    if metrics_of(table):
        return condensed(table)
    return summary(table) if {"metric", "mean"} <= set(table.columns) else table


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics of a wide table, in order; none of any other."""
    return [c.removesuffix(SUFFIXES[0]) for c in table.columns if c.endswith(SUFFIXES[0])]


def condensed(table: pd.DataFrame) -> pd.DataFrame:
    """A wide table's columns that a reader compares: what was run, on what, and `mean ± interval (published)` for each metric."""
    constant = [c for c in ("compat", "evaluation") if table[c].nunique() <= 1]
    shown = [c for c in ("run", "method", "init", "arch", "compat", "evaluation", "dataset", "seeds") if c not in constant]
    metrics = {m: [reading(*(row[m + s] for s in ("", *SUFFIXES[:2]))) for _, row in table.iterrows()] for m in metrics_of(table)}
    return pd.concat([table[shown], pd.DataFrame(metrics, index=table.index, dtype=str)], axis=1)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The tidy table without its seeds: one line per run, evaluation and metric; GPU-hours are the mean over the seeds."""
    keys = ["run", "method", "init", "arch", "compat", "evaluation", "metric", "seeds"]
    once = table.drop_duplicates(keys)
    values = [reading(*cells) for cells in once[["mean", "ci95", "published"]].itertuples(index=False)]
    spent = table.assign(spent=pd.to_numeric(table["training_gpu_hours"])).groupby(keys, sort=False)["spent"].mean()
    return once[keys].assign(value=values, gpu_hours=[fixed(float(hours), 4) for hours in spent])


def reading(mean: str, half: str, published: str) -> str:
    """A number as a reader meets it."""
    return (mean or "–") + (f" ± {half}" if half else "") + (f" (published {published})" if published else "")


def protocols(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Evaluation, data set and protocol of a wide table's rows, each once."""
    if not metrics_of(table):
        return []
    return list(dict.fromkeys(zip(table["evaluation"], table["dataset"], table["protocol"], strict=True)))
