"""Charts and panels: the only door to matplotlib.

Charts are SVG for the page: text and axes take the page's colour, so that they can be read on light and on dark paper. Panels are
PNG: pictures of one size side by side. Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color), which people who cannot
tell red from green can tell apart; in a chart a marker or a label always says the same again.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jaxtyping import UInt8
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from densewalk.checkpoint import atomic_write

INK = "#010203"  # stands for the text's colour, which is only known when the page is shown
# those of the set, darkened where needed, that stand out (3 : 1) from white and from the page's dark paper
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c26a9a", "#7f7f7f", "#9a7d00")
MARKERS = ("o", "s", "^", "D", "P", "X", "v")
STYLE: Any = {
    "svg.hashsalt": "densewalk",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#80808040",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
Curves = Mapping[str, Mapping[str, Sequence[float]]]  # seed -> quantity -> values, one of which is `step`


@dataclass(frozen=True)
class Point:
    """One run in the plot of cost against quality. half: of the interval, 0 for one seed. after: the run it is built on."""

    run: str
    method: str
    hours: float
    value: float
    half: float
    after: str | None


# -- charts ----------------------------------------------------------------------------------------------------------


def learning_curves(run: str, curves: Curves) -> Markup | None:
    """The logged quantities over a run's steps, a panel each, one line per seed; None if nothing was logged."""
    names = list(dict.fromkeys(n for points in curves.values() for n in points if n not in ("step", "time")))
    if not names:
        return None
    label = f"Learning curves of {run}: {', '.join(names)} by optimiser step; seeds {', '.join(curves)}"
    with mpl.rc_context(STYLE):
        figure, axes = _grid(len(names), width=2.9, height=2.1)
        for axis, name in zip(axes, names, strict=True):
            for seed, points in curves.items():
                if name in points:
                    axis.plot(points["step"], points[name], linewidth=1.3, label=seed)
            axis.set_title(name)
        if len(curves) > 1:
            axes[0].legend(fontsize=8)
        return _svg(figure, name=f"curve-{run}", label=label)


def cost_and_quality(metric: str, points: Sequence[Point], hours: str) -> Markup:
    """Mean and interval of one metric by the hours that a backbone took, a thin line from each run to what was built on it."""
    label = f"{metric} by {hours}: " + "; ".join(f"{p.run} {p.hours:.3g} h, {p.value:.2f}" for p in points)
    places = {p.run: (p.hours, p.value) for p in points}
    methods = list(dict.fromkeys(p.method for p in points))
    with mpl.rc_context(STYLE):
        figure, (axis,) = _grid(1, width=7.2, height=3.6)
        for p in points:
            if p.after in places:
                axis.annotate("", (p.hours, p.value), places[p.after], arrowprops={"arrowstyle": "->", "color": "#80808090", "lw": 1})
        for i, method in enumerate(methods):
            own = [p for p in points if p.method == method]
            style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            x, y, half = ([getattr(p, name) for p in own] for name in ("hours", "value", "half"))
            axis.errorbar(x, y, yerr=half, capsize=3, markersize=7, label=method, **style)
        axis.margins(x=0.14, y=0.05)
        _label_points(axis, points)
        axis.set_xlabel(hours)
        axis.set_ylabel(metric)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="method")
        return _svg(figure, name=f"cost-{metric}", label=label)


def _label_points(axis: Axes, points: Sequence[Point]) -> None:
    """Names above the points' intervals, higher where they would lie on another name; widths and heights are shares of the axes."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    placed: list[tuple[float, float, float]] = []
    for p in sorted(points, key=lambda p: (p.hours, p.value)):
        x, y, wide = (p.hours - left) / (right - left), (p.value + p.half - low) / (high - low) + 0.02, 0.008 * len(p.run) + 0.01
        while any(abs(x - x0) < wide + wide0 and abs(y - y0) < 0.07 for x0, y0, wide0 in placed):
            y += 0.01
        placed.append((x, y, wide))
        axis.text(p.hours, low + y * (high - low), p.run, ha="center", va="bottom", fontsize=8)
    axis.set_ylim(low, low + max([1.0, *(y + 0.07 for _, y, _ in placed)]) * (high - low))
    axis.set_xlim(left, right)


def class_values(title: str, classes: Sequence[str], runs: Mapping[str, Sequence[float | None]]) -> Markup:
    """A dot for each class and run, classes as rows in the order of the best run's value."""
    label = f"{title} of {len(classes)} classes for {', '.join(runs)}"
    table = np.array([[np.nan if v is None else v for v in values] for values in runs.values()], dtype=float)
    order = np.argsort(np.nan_to_num(np.nanmax(np.where(np.isnan(table), -1, table), axis=0)), kind="stable")
    with mpl.rc_context(STYLE):
        figure, (axis,) = _grid(1, width=7.2, height=0.9 + 0.2 * len(classes))
        rows = np.arange(len(classes))
        for i, (run, values) in enumerate(zip(runs, table, strict=True)):
            style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axis.plot(values[order], rows, linestyle="none", markersize=5, alpha=0.85, label=run, **style)
        axis.set_yticks(rows, [classes[i] for i in order], fontsize=8)
        axis.set_ylim(-0.7, len(classes) - 0.3)
        axis.set_xlim(left=0)
        axis.set_xlabel(title)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure, name=f"classes-{title}", label=label)


def _grid(count: int, *, width: float, height: float, most: int = 4) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` axes in rows of at most `most`; sizes in inches, each."""
    columns = count if count <= most else 3
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def _svg(figure: Figure, *, name: str, label: str) -> Markup:
    """A figure as inline SVG: text in the page's colour, ids of its own, a name for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text, count=3).replace("xlink:href", "href")
    own = re.sub(r"\W", "_", name)
    for before, after in ((r'\bid="', f'id="{own}-'), (r'href="#', f'href="#{own}-'), (r"url\(#", f"url(#{own}-")):
        text = re.sub(before, after, text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(label)}" ', 1))


# -- panels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A picture and what stands above it."""

    image: UInt8[np.ndarray, "height width 3"]
    title: str = ""


def write_panels(path: str | Path, rows: Sequence[Sequence[Panel]], legend: Mapping[str, Any] | None = None, *, width: float = 3.0) -> None:
    """Write pictures in rows and columns of one size; a row may be short.

    Args:
        legend: text -> colour, below the pictures. width: of a column in inches.
    """
    columns = max(len(row) for row in rows)
    aspect = max(panel.image.shape[0] / panel.image.shape[1] for row in rows for panel in row)
    lines = -(-len(legend) // 6) if legend else 0
    figure = Figure(figsize=(width * columns, (width * aspect + 0.3) * len(rows) + 0.25 * lines + 0.1), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in axes:
            axis.set_axis_off()
        for axis, panel in zip(axes, row, strict=False):  # a shorter row leaves axes empty
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(panel.title, fontsize=8, loc="left")
    if legend:
        handles = [Patch(facecolor=colour, edgecolor="0.6", label=text) for text, colour in legend.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
