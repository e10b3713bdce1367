"""A ladder between two evaluations: its scores, tables and waterfall.

results/explain/{A}-{B}/{run}-s{seed}/scores/{hash}.json      LadderScore: one combination of settings
results/explain/{A}-{B}/{run}-s{seed}/steps.csv               what each step makes of the difference
results/explain/{A}-{B}/{run}-s{seed}/scores.csv              every score
results/explain/{A}-{B}/{run}-s{seed}/interactions.csv        what two steps do together; where all combinations are scored
results/explain/{A}-{B}/{run}-s{seed}/waterfall.svg           from A's score to B's by the Shapley shares
results/explain/{A}-{B}/{run}-s{seed}/ladder.json             Explained: all of it, which the page reads
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from densewalk.core.files import atomic_write
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model, write_model

RISE, FALL, WHOLE = "#0072b2", "#d55e00", "#7f7f7f"
FORMAT = "{:.4f}"


class LadderScore(Settings):
    """The metrics of one combination of settings. config_hash: its evaluation's; backbone_sha256, data: of what was read."""

    config_hash: str
    backbone_sha256: str
    data: str
    metrics: dict[str, float | None]


class StepShare(Settings):
    """What one step makes of the difference.

    start, end: the values of its settings. shapley: the mean over all orders of the steps, with its standard error where orders were
    sampled; None where only the table's order was scored. sequential: in that order. low, high: the interval of the first of the two that
    is there, over the choice of test units. from_a, from_b: turned alone from A, turned alone back from B; None if not scored.
    """

    name: str
    start: str
    end: str
    reason: str
    shapley: float | None
    standard_error: float | None
    sequential: float
    from_a: float | None
    from_b: float | None
    low: float | None = None
    high: float | None = None

    is_code: bool = False
    """No setting: what is left between the evaluation's own code and the ladder's."""

    @property
    def share(self) -> float:
        """What the waterfall shows."""
        return self.sequential if self.shapley is None else self.shapley


class Interval(Settings):
    """How the intervals of the shares came about. method: BCa or percentile; None where there are none, and `notes` says why.

    clusters: what was drawn, if units belong together (objects of a video).
    """

    method: str | None = None
    confidence: float | None = None
    resamples: int | None = None
    unit: str | None = None
    units: int | None = None
    clusters: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """In words."""
        if self.method is None or self.confidence is None:
            return "; ".join(self.notes)
        drawn = f"{self.units} of the kind {self.unit}" + (f" in {self.clusters} clusters" if self.clusters else "")
        how = f"{100 * self.confidence:.0f} % intervals over the choice of test units: {self.method}, {self.resamples} resamples of {drawn}"
        return "; ".join([f"{how}, the same for all scores", *self.notes])


class Explained(Settings):
    """A whole ladder. scores: by the names of the steps that are B's. interactions: of pairs of steps; None where orders were sampled."""

    version: Literal[1] = 1
    names: tuple[str, str]
    run: str
    seed: int
    metric: str
    unit: str
    first: float
    last: float
    steps: list[StepShare]
    scores: list[tuple[str, float]]
    interactions: list[list[float]] | None
    interval: Interval | None = None

    @property
    def shares(self) -> str:
        """What the steps' shares are, in words."""
        return "contributions of the steps in this order" if any(s.shapley is None for s in self.steps) else "Shapley shares of the steps"


def write_ladder(found: Explained, folder: Path) -> None:
    """Write tables and waterfall."""
    head = [
        "step",
        f"{found.names[0]} has",
        f"{found.names[1]} has",
        "shapley",
        "standard_error",
        "low",
        "high",
        "sequential",
        "from_a",
        "from_b",
        "joined_because",
    ]
    rows = [
        [s.name, s.start, s.end, *map(_number, (s.shapley, s.standard_error, s.low, s.high, s.sequential, s.from_a, s.from_b)), s.reason]
        for s in found.steps
    ]
    _write_csv(folder / "steps.csv", [head, *rows])
    _write_csv(folder / "scores.csv", [["steps of " + found.names[1], found.metric], *([name, _number(v)] for name, v in found.scores)])
    if found.interactions is not None:
        names = [step.name for step in found.steps]
        lines = [[name, *map(_number, row)] for name, row in zip(names, found.interactions, strict=True)]
        _write_csv(folder / "interactions.csv", [["", *names], *lines])
    write_model(folder / "ladder.json", found)
    with atomic_write(folder / "waterfall.svg") as temporary:
        temporary.write_text(waterfall(found), encoding="utf-8")


def read_ladders(results: Path) -> list[Explained]:
    """All ladders of a folder of results, by their names; a UserError names a broken one."""
    paths = sorted((results / "explain").glob("*/*/ladder.json"))
    return [read_model(path, Explained, "ladder", "delete it, and run densewalk explain again") for path in paths]


def waterfall(found: Explained) -> str:
    """An SVG in colors of its own."""
    style: Any = {"svg.hashsalt": "densewalk", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    with mpl.rc_context(style):
        buffer = io.StringIO()
        draw_waterfall(found).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def draw_waterfall(found: Explained) -> Figure:
    """A's score, the share of each step from where the one before it ended, B's score."""
    values = [found.first, *(s.share for s in found.steps), found.last]
    ends = np.cumsum(values[:-1])  # after A and after each step
    labels = [found.names[0], *(s.name for s in found.steps), found.names[1]]
    figure = Figure(figsize=(7.0, 0.9 + 0.34 * len(labels)), layout="constrained")
    axis = figure.add_subplot()
    axis.barh(0, found.first, color=WHOLE)
    for i, step in enumerate(found.steps):
        error = step.standard_error if step.low is None else None
        axis.barh(i + 1, step.share, left=ends[i], color=RISE if step.share >= 0 else FALL, xerr=error)
        if step.low is not None and step.high is not None:
            axis.plot([ends[i] + step.low, ends[i] + step.high], [i + 1, i + 1], color="#808080", linewidth=1.2)
        axis.plot([ends[i], ends[i]], [i - 0.4, i + 1.4], color="#808080", linewidth=0.6)
    axis.barh(len(labels) - 1, found.last, color=WHOLE)
    reach = [ends[i] + x for i, s in enumerate(found.steps) for x in (s.low, s.high) if x is not None]
    low, high = min(0.0, *ends, found.last, *reach), max(*ends, found.first, found.last, *reach)
    near = min(found.first, found.last, *ends, *reach)
    if near > 0.5 * high:  # the steps would be too thin to see
        low = near - 0.6 * (high - near) - 0.02 * high
    axis.set_xlim(low, high + 0.14 * (high - low))
    for i, value in enumerate(values):
        at = value
        if 0 < i < len(labels) - 1:
            at = max(ends[i - 1], ends[i], ends[i - 1] + (found.steps[i - 1].high or 0.0))
        axis.text(at, i, f" {value:.2f}" if i in (0, len(labels) - 1) else f" {value:+.2f}", va="center")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    cut = ", axis cut" if low > 0 else ""
    lines = "\nlines: their intervals over test units" if reach else ""
    axis.set_xlabel(f"{found.metric} of {found.run} ({found.unit}){cut}\n{found.shares}{lines}")
    return figure


def _number(value: float | None) -> str:
    return "" if value is None else FORMAT.format(value)


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
