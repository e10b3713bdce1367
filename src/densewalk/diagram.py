"""The study as a picture: data and initial backbones on the left, runs to the right of what they are made from.

Drawn as SVG in the page's own colours, without a layout program: a study is a few chains, not a web.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from densewalk.gaps import Plan

WIDTH, HEIGHT, ACROSS, DOWN = 190, 46, 250, 64  # of a box, and from one box to the next, in pixels


# a run may be called like the data that it is trained on, or like what it starts from
Key = tuple[str, str]  # "data", "weights" or "run", and the name


@dataclass(frozen=True)
class Box:
    """A node: title, what stands below it, its kind (`source`, `run` or `gap`) and the keys of what it is made from."""

    name: str
    note: str
    kind: str
    parents: Sequence[Key] = ()


def study_diagram(plan: Plan, incomplete: Mapping[str, str]) -> Markup:
    """The plan as SVG.

    Args:
        incomplete: run -> what is missing of it, in a few words.
    """
    boxes = {**_sources(plan), **_runs(plan, incomplete)}
    places = layout(boxes)
    wide = max(x for x, _ in places.values()) + WIDTH + 2
    high = max(y for _, y in places.values()) + HEIGHT + 2
    edges = "".join(_edge(places[p], places[key]) for key, b in boxes.items() for p in b.parents)
    nodes = "".join(_node(b, *places[key]) for key, b in boxes.items())
    made = "; ".join(f"{b.name} from {', '.join(name for _, name in b.parents)}" for b in boxes.values() if b.parents)
    return Markup(
        f'<svg class="diagram" role="img" aria-label="{escape(f"What is made from what: {made}")}" '
        f'width="{wide:.0f}" height="{high:.0f}" viewBox="-1 -1 {wide:.0f} {high:.0f}">{edges}{nodes}</svg>'
    )


def _sources(plan: Plan) -> dict[Key, Box]:
    used = dict.fromkeys(name for run in plan["runs"].values() for name in run["data"])
    inits = dict.fromkeys(run["init"] for run in plan["runs"].values() if run["init"] not in plan["runs"])
    return {
        **{("data", n): Box(n, "data", "source") for n in used},
        **{("weights", n): Box(n, "random weights" if n == "random" else "checkpoint", "source") for n in inits},
    }


def _runs(plan: Plan, incomplete: Mapping[str, str]) -> dict[Key, Box]:
    boxes = {}
    for name, run in plan["runs"].items():
        seeds = f"{len(run['seeds'])} seeds" if len(run["seeds"]) > 1 else f"seed {run['seeds'][0]}"
        method = "as it is" if run["method"] == "none" else run["method"]
        note = incomplete.get(name, f"{method}, {seeds}")
        init = ("run" if run["init"] in plan["runs"] else "weights", run["init"])
        parents = (init, *(("data", data) for data in run["data"]))
        boxes["run", name] = Box(name, note, "gap" if name in incomplete else "run", parents)
    return boxes


def layout(boxes: Mapping[Key, Box]) -> dict[Key, tuple[float, float]]:
    """The upper left corner of each box: one column to the right of its rightmost parent, in the order of its parents' height."""
    columns: dict[int, list[Key]] = defaultdict(list)
    depth: dict[Key, int] = {}

    def column(key: Key) -> int:
        if key not in depth:
            depth[key] = 1 + max((column(p) for p in boxes[key].parents), default=-1)
        return depth[key]

    for key in boxes:
        columns[column(key)].append(key)
    places: dict[Key, tuple[float, float]] = {}
    tallest = max(len(keys) for keys in columns.values())
    for i, keys in sorted(columns.items()):
        heights = {k: [places[p][1] for p in boxes[k].parents] for k in keys}
        order = sorted(keys, key=lambda k: sum(heights[k]) / len(heights[k]) if heights[k] else 0.0)
        top = (tallest - len(keys)) * DOWN / 2
        places |= {key: (i * ACROSS, top + row * DOWN) for row, key in enumerate(order)}
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
