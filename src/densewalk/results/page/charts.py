"""Charts as SVG for the page: text and axes take the page's color, so that they can be read on light and on dark paper.

Colors are Okabe and Ito's (https://jfly.uni-koeln.de/color), which people who cannot tell red from green can tell apart; a marker or
a label always says the same again.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.transforms import Affine2D, Bbox
from numpy.typing import NDArray

from densewalk.core.metric import Ceiling
from densewalk.results.ladder import Explained, draw_waterfall
from densewalk.training.progress_files import NOT_QUANTITIES

INK = "#010203"  # stands for the text's color, which is only known when the page is shown
# those of the set, darkened where needed, that have a contrast of 3 : 1 with white and with the page's dark paper
COLORS = ("#0072b2", "#d55e00", "#009e73", "#c26a9a", "#7f7f7f", "#9a7d00")
MARKERS = ("o", "s", "^", "D", "P", "X", "v")
STYLE: Any = {
    "svg.hashsalt": "densewalk",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#80808040",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
SMALL: Any = {"textcoords": "offset points", "fontsize": 8}
Margins = tuple[float, float, float, float]  # left, right, bottom, top in inches
MARGINS = (0.72, 0.08, 0.45, 0.42)  # of a learning curve: to find out what its labels need takes as long as to draw it
Curves = Mapping[str, Mapping[str, Sequence[float]]]  # seed -> quantity -> values, one of which is `step`


@dataclass(frozen=True)
class Point:
    """One run in the plot of cost against quality. half: of the interval, 0 for one seed. after: the run it is built on.

    spent: hours, or counted teraflop.
    """

    run: str
    method: str
    spent: float
    value: float
    half: float
    after: str | None


@mpl.rc_context(STYLE)
def learning_curves(run: str, curves: Curves, ceilings: Mapping[str, Ceiling]) -> Markup | None:
    """Draw the logged quantities over a run's steps, a panel each, one line per seed; None if nothing was logged.

    Args:
        ceilings: quantity -> its largest possible value, a dashed line.
    """
    names = list(dict.fromkeys(n for points in curves.values() for n in points if n not in NOT_QUANTITIES))
    if not names:
        return None
    figure, axes = _grid(len(names), width=2.9, height=2.2, margins=MARGINS)
    for axis, name in zip(axes, names, strict=True):
        for seed, points in curves.items():
            if name in points:
                marker = "o" if len(points["step"]) == 1 else None  # a line of one point is not seen
                axis.plot(points["step"], points[name], linewidth=1.3, label=seed, marker=marker, markersize=3)
        if name in ceilings:
            top = ceilings[name].value
            axis.axhline(top, linestyle="--", linewidth=1, color=INK)
            axis.annotate(ceilings[name].text, (1, top), (0, -3), xycoords=("axes fraction", "data"), ha="right", va="top", **SMALL)
        axis.set(title=name, xlabel="step")
    if len(curves) > 1:
        axes[0].legend(fontsize=8)
    label = f"Learning curves of {run}: {', '.join(names)} by optimizer step; seeds {', '.join(curves)}"
    label += "".join(f"; {name} is at most {ceilings[name].text}" for name in names if name in ceilings)
    return _svg(figure, name=f"curve-{run}", label=label)


def marker_style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Color and marker of one of the page's methods or runs: the same in every chart."""
    i = list(names).index(name)
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}


@mpl.rc_context(STYLE)
def method_legend(methods: Sequence[str]) -> Markup:
    """Draw the legend of all `cost_and_quality`, in one line."""
    figure = Figure(figsize=(0.4 + sum(0.5 + 0.09 * len(m) for m in methods), 0.3))
    handles = [Line2D([], [], markersize=7, **marker_style(m, methods)) for m in methods]
    figure.legend(handles, methods, loc="center left", ncols=len(methods), borderpad=0, columnspacing=1.5, handletextpad=0.3)
    return _svg(figure, name="methods", label=f"Methods: {', '.join(methods)}")


PER_HOUR = {"h": 1, "min": 60, "s": 3600}
COUNTED = "counted"  # in place of whose time it is
PROCESSES = "processes"  # of a time that is multiplied by how many there were
WORDS = {"h": "hours", "min": "minutes", "s": "seconds"}


def time_unit(hours: float) -> str:
    """The unit that a time is told in: seconds below ten minutes, so that small jobs can be told apart."""
    if hours >= 1:
        return "h"
    return "min" if hours >= 1 / 6 else "s"


@mpl.rc_context(STYLE)
def cost_and_quality(name: str, metric: str, points: Sequence[Point], unit: str, methods: Sequence[str]) -> Markup:
    """Draw mean and interval of a metric by what a backbone has cost, an arrow from each run to what was built on it.

    Args:
        name: of the evaluation. unit: whose time it is, or COUNTED, or PROCESSES. methods: of all runs of the page, in their order.
    """
    scale, short, words = units_of(unit, max(p.spent for p in points))
    points = [replace(p, spent=p.spent * scale) for p in points]
    places = {p.run: (p.spent, p.value) for p in points}
    figure, (axis,) = _grid(1, width=4.6, height=3.2)
    for p in points:
        if p.after in places:
            arrow = {"arrowstyle": "->", "color": "#80808090", "lw": 1, "shrinkB": 5}
            axis.annotate("", (p.spent, p.value), places[p.after], arrowprops=arrow)
        axis.errorbar(p.spent, p.value, yerr=p.half or None, capsize=3, markersize=7, **marker_style(p.method, methods))
    axis.margins(x=0.2, y=0.16)
    low, high = axis.get_ylim()
    if (lacking := SPAN - (high - low)) > 0:
        axis.set_ylim(low - lacking / 2, high + lacking / 2)
    left, right = axis.get_xlim()
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= right])  # left of zero there is room for names, but no time
    axis.set(xlim=(left, right), xlabel=f"{words}, initial runs included", ylabel=metric)
    _label_points(figure, axis, points[:NAMED])
    costs = "; ".join(f"{p.run} {p.spent:.3g} {short}, {p.value:.2f}" for p in points)
    label = f"{name}: {metric} by {words}: {costs}"
    return _svg(figure, name=f"{'work' if unit == COUNTED else 'cost'}-{name}", label=label)


def units_of(unit: str, most: float) -> tuple[float, str, str]:
    """What hours of a device, or teraflop, are multiplied by on an axis that ends at `most`, and the unit there, short and in words."""
    if unit == COUNTED:
        return (1e-3, "petaflop", "counted petaflop") if most >= 1000 else (1.0, "teraflop", "counted teraflop")
    short = time_unit(most)
    return PER_HOUR[short], short, f"{WORDS[short]} × processes" if unit == PROCESSES else f"{unit} {WORDS[short]}"


SPAN = 2.0  # least of the axis of a metric, in its unit: hundredths of a percent shall not look like a difference
NAMED = 60  # most points with their names
OFFSETS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 2), (0, -2))
"""Places of a point's name: across and up, in steps of its own size. The first is taken that covers nothing."""


def _label_points(figure: Figure, axis: Axes, points: Sequence[Point]) -> None:
    """Write each point's name where it covers no marker, no interval and no other name, as far as that is possible."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    inside = axis.bbox.frozen().transformed(Affine2D().scale(scale))

    def at(spent: float, value: float) -> tuple[float, float]:
        x, y = axis.transData.transform((spent, value))
        return scale * x, scale * y

    ends = [[at(p.spent, p.value + sign * p.half) for sign in (-1, 1)] for p in points]
    taken = np.array([(x - 5, low - 5, x + 5, high + 5) for (x, low), (_, high) in ends])  # left, bottom, right, top
    for p in points:
        (x, y), width, height = at(p.spent, p.value), 4.9 * len(p.run), 9.0
        boxes = []
        for across, up in OFFSETS:
            center = (x + across * (width / 2 + 7), y + up * (height / 2 + 7 + (abs(up) > 1) * 6))
            boxes.append(Bbox.from_bounds(center[0] - width / 2, center[1] - height / 2, width, height))
        outside = [box.width * box.height - float(_overlap(box, np.array([inside.extents])).sum()) for box in boxes]
        box = boxes[int(np.argmin([float(_overlap(box, taken).sum()) + out for box, out in zip(boxes, outside, strict=True)]))]
        taken = np.vstack([taken, box.extents])
        offset = ((box.x0 + box.x1) / 2 - x, (box.y0 + box.y1) / 2 - y)
        axis.annotate(p.run, (p.spent, p.value), offset, textcoords="offset points", ha="center", va="center", fontsize=8)


def _overlap(box: Bbox, others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas that a box shares with others, each left, bottom, right, top."""
    left, bottom, right, top = box.extents
    width = np.minimum(right, others[:, 2]) - np.maximum(left, others[:, 0])
    height = np.minimum(top, others[:, 3]) - np.maximum(bottom, others[:, 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


@mpl.rc_context(STYLE)
def class_values(title: str, classes: Sequence[str], runs: Mapping[str, Sequence[float | None]], all_runs: Sequence[str]) -> Markup:
    """Draw a dot for each class and run, classes as rows in the order of the best run's value. all_runs: of the page, in their order."""
    table = np.array(list(runs.values()), dtype=float)  # NaN for None
    order = np.argsort(np.nan_to_num(table, nan=-1).max(axis=0), kind="stable")
    figure, (axis,) = _grid(1, width=7.2, height=0.9 + 0.2 * len(classes))
    rows = np.arange(len(classes))
    for run, values in zip(runs, table, strict=True):
        axis.plot(values[order], rows, markersize=5, alpha=0.85, label=run, **marker_style(run, all_runs))
    axis.set_yticks(rows, [classes[i] for i in order], fontsize=8)
    axis.set_ylim(-0.7, len(classes) - 0.3)
    axis.set_xlim(left=0)
    axis.set_xlabel(title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, name=f"classes-{title}", label=f"{title} of {len(classes)} classes for {', '.join(runs)}")


def _grid(count: int, *, width: float, height: float, most: int = 4, margins: Margins | None = None) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` axes in rows of at most `most`; sizes in inches, each. margins: of each, instead of what its labels need."""
    columns = min(count, most)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout=None if margins else "constrained")
    if margins:
        left, right, bottom, top = margins
        inner = (width - left - right, height - bottom - top)
        figure.subplots_adjust(
            left=left / (width * columns),
            right=1 - right / (width * columns),
            bottom=bottom / (height * rows),
            top=1 - top / (height * rows),
            wspace=(left + right) / inner[0],
            hspace=(bottom + top) / inner[1],
        )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


@mpl.rc_context(STYLE | {"axes.grid": False})
def ladder_chart(ladder: Explained) -> Markup:
    """Draw a ladder's waterfall."""
    a, b = ladder.names
    label = f"{ladder.metric} of {ladder.run}: from {a} ({ladder.first:.2f}) to {b} ({ladder.last:.2f}) by the {ladder.shares}"
    return _svg(draw_waterfall(ladder), name=f"ladder-{a}-{b}-{ladder.run}-{ladder.seed}", label=label)


def _svg(figure: Figure, *, name: str, label: str) -> Markup:
    """A figure as inline SVG: text in the page's color, ids of its own, a name for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text, count=3).replace("xlink:href", "href")
    own = re.sub(r"\W", "_", name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
