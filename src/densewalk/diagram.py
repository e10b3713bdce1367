"""The study as a picture: data and initial backbones on the left, runs to the right of what they are made from.

Drawn as SVG in the page's own colours, without a layout program: a study is a few chains, not a web.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from densewalk.gaps import Plan

WIDTH, HEIGHT, ACROSS, DOWN = 190, 46, 250, 64  # of a box, and from one box to the next, in pixels


@dataclass(frozen=True)
class Box:
    """A node: title, what stands below it, its kind (`source`, `run` or `gap`) and the names of what it is made from."""

    name: str
    note: str
    kind: str
    parents: Sequence[str] = ()


def study_diagram(plan: Plan, incomplete: Mapping[str, str]) -> Markup:
    """The plan as SVG.

    Args:
        incomplete: run -> what is missing of it, in a few words.
    """
    boxes = {b.name: b for b in [*_sources(plan), *_runs(plan, incomplete)]}
    places = layout(boxes)
    wide = max(x for x, _ in places.values()) + WIDTH + 2
    high = max(y for _, y in places.values()) + HEIGHT + 2
    edges = "".join(_edge(places[p], places[b.name]) for b in boxes.values() for p in b.parents)
    nodes = "".join(_node(b, *places[b.name]) for b in boxes.values())
    made = "; ".join(f"{b.name} from {', '.join(b.parents)}" for b in boxes.values() if b.parents)
    return Markup(
        f'<svg class="diagram" role="img" aria-label="{escape(f"What is made from what: {made}")}" '
        f'width="{wide:.0f}" height="{high:.0f}" viewBox="-1 -1 {wide:.0f} {high:.0f}">{edges}{nodes}</svg>'
    )


def _sources(plan: Plan) -> list[Box]:
    used = dict.fromkeys(name for run in plan["runs"].values() for name in run["data"])
    inits = dict.fromkeys(run["init"] for run in plan["runs"].values() if run["init"] not in plan["runs"])
    names = {"random": "random weights"}
    return [Box(n, "data", "source") for n in used] + [Box(n, names.get(n, "checkpoint"), "source") for n in inits]


def _runs(plan: Plan, incomplete: Mapping[str, str]) -> list[Box]:
    boxes = []
    for name, run in plan["runs"].items():
        seeds = f"{len(run['seeds'])} seeds" if len(run["seeds"]) > 1 else f"seed {run['seeds'][0]}"
        method = "as it is" if run["method"] == "none" else run["method"]
        note = incomplete.get(name, f"{method}, {seeds}")
        boxes.append(Box(name, note, "gap" if name in incomplete else "run", (run["init"], *run["data"])))
    return boxes


def layout(boxes: Mapping[str, Box]) -> dict[str, tuple[float, float]]:
    """The upper left corner of each box: one column to the right of its rightmost parent, in the order of its parents' height."""
    columns: dict[int, list[str]] = defaultdict(list)
    depth: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((column(p) for p in boxes[name].parents), default=-1)
        return depth[name]

    for name in boxes:
        columns[column(name)].append(name)
    places: dict[str, tuple[float, float]] = {}
    tallest = max(len(names) for names in columns.values())
    for i, names in sorted(columns.items()):
        heights = {n: [places[p][1] for p in boxes[n].parents] for n in names}
        order = sorted(names, key=lambda n: sum(heights[n]) / len(heights[n]) if heights[n] else 0.0)
        top = (tallest - len(names)) * DOWN / 2
        places |= {name: (i * ACROSS, top + row * DOWN) for row, name in enumerate(order)}
    return places


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = start, end
    x0, y0, y1 = x0 + WIDTH, y0 + HEIGHT / 2, y1 + HEIGHT / 2
    bend = min(40.0, (x1 - x0) / 2)
    return f'<path d="M{x0:.0f} {y0:.0f} C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"/>'


def _node(box: Box, x: float, y: float) -> str:
    return (
        f'<g class="{box.kind}"><rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 10:.0f}" y="{y + 19:.0f}">{escape(_short(box.name, 24))}</text>'
        f'<text x="{x + 10:.0f}" y="{y + 36:.0f}">{escape(_short(box.note, 28))}</text></g>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
