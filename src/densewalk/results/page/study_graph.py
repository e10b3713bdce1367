"""The study as a diagram: data and initial backbones on the left, runs to the right of what they are made from.

Drawn as SVG in the page's own colors, without a layout program: a study is a few chains, not a web.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from densewalk.results.plan import Plan

WIDTH, HEIGHT, ACROSS, DOWN = 190, 46, 250, 64  # of a box, and from one box to the next, in pixels
LANE = 24  # height that a line takes where it passes between boxes
Key = tuple[str, str]  # "data", "weights" or "run", and the name: a run may be called like its data, or like what it starts from
Point = tuple[float, float]
Lanes = Mapping[tuple[Key, Key], Sequence[Point]]

SVG = Markup(
    '<svg class="diagram" role="img" aria-label="What is made from what: {made}" '
    'width="{width:.0f}" height="{height:.0f}" viewBox="-1 -1 {width:.0f} {height:.0f}">{edges}{nodes}</svg>'
)
NODE = Markup(
    '<g class="{kind}"><rect x="{x:.0f}" y="{y:.0f}" width="{width}" height="{height}" rx="6"/>'
    '<text class="name" x="{text_x:.0f}" y="{name_y:.0f}">{name}</text><text x="{text_x:.0f}" y="{note_y:.0f}">{note}</text></g>'
)


@dataclass(frozen=True)
class Box:
    """A node: title, what stands below it, its kind (`source`, `run` or `gap`) and the keys of what it is made from.

    teachers: those of the parents from which it learns.
    """

    name: str
    note: str
    kind: str
    parents: Sequence[Key] = ()
    teachers: Sequence[Key] = ()


def study_diagram(plan: Plan, incomplete: Mapping[str, str]) -> Markup:
    """Draw the plan as SVG.

    Args:
        incomplete: run -> what is missing of it, in a few words.
    """
    boxes = _boxes(plan, incomplete)
    places, lanes = layout(boxes)
    return SVG.format(
        made="; ".join(f"{b.name} from {', '.join(name for _, name in b.parents)}" for b in boxes.values() if b.parents),
        width=max(x for x, _ in places.values()) + WIDTH + 2,
        height=max([*(y + HEIGHT for _, y in places.values()), *(y for lane in lanes.values() for _, y in lane)]) + 2,
        edges=Markup().join(
            _edge(places[p], lanes[p, key], places[key], learns=p in b.teachers) for key, b in boxes.items() for p in b.parents
        ),
        nodes=Markup().join(_node(b, *places[key]) for key, b in boxes.items()),
    )


def _boxes(plan: Plan, incomplete: Mapping[str, str]) -> dict[Key, Box]:
    """Data, weights that no run of the study makes, then runs."""
    boxes = {("data", data): Box(data, "data", "source") for run in plan.runs.values() for data in run.data}
    for run in plan.runs.values():
        for start in (run.init, *run.teachers):
            if start not in plan.runs:
                boxes["weights", start] = Box(start, "random weights" if start == "random" else "checkpoint", "source")
    for name, run in plan.runs.items():
        seeds = f"{len(run.seeds)} seeds" if len(run.seeds) > 1 else f"seed {run.seeds[0]}"
        method = "as it is" if run.method == "none" else run.method
        init, *teachers = [("run" if start in plan.runs else "weights", start) for start in (run.init, *run.teachers)]
        note, kind = (incomplete[name], "gap") if name in incomplete else (f"{method}, {seeds}", "run")
        boxes["run", name] = Box(name, note, kind, [*dict.fromkeys((init, *teachers, *(("data", data) for data in run.data)))], teachers)
    return boxes


def layout(boxes: Mapping[Key, Box]) -> tuple[dict[Key, Point], Lanes]:
    """Place a box one column to the right of its rightmost parent, in the order of its parents' height.

    Returns:
        The upper left corner of each box; and for each line, by its two ends, where it enters the columns between them: it has a
        lane of its own there, so that it passes behind no box.
    """
    depth: dict[Key, int] = {}

    def column(key: Key) -> int:
        if key not in depth:
            depth[key] = 1 + max((column(p) for p in boxes[key].parents), default=-1)
        return depth[key]

    last = {key: column(key) for key in boxes}  # the rightmost column that a line from this box leads to
    for key, box in boxes.items():
        for parent in box.parents:
            last[parent] = max(last[parent], depth[key])
    # a column holds its boxes, and a lane for each box further left from which a line leads further right
    columns = [[key for key in boxes if depth[key] <= i and (depth[key] == i or last[key] > i)] for i in range(max(depth.values()) + 1)]
    heights = [sum(DOWN if depth[key] == i else LANE for key in keys) for i, keys in enumerate(columns)]
    middle: dict[Key, float] = {}  # of a box, or of the lane of its lines in the latest column
    places: dict[Key, Point] = {}
    entries: dict[tuple[Key, int], Point] = {}
    for i, keys in enumerate(columns):
        wanted = {k: [middle[p] for p in (boxes[k].parents if depth[k] == i else [k])] for k in keys}
        y = (max(heights) - heights[i]) / 2
        for key in sorted(keys, key=lambda k: sum(wanted[k]) / len(wanted[k]) if wanted[k] else 0.0):
            height = DOWN if depth[key] == i else LANE
            middle[key] = y + (height - DOWN + HEIGHT) / 2
            if depth[key] == i:
                places[key] = (i * ACROSS, y)
            else:
                entries[key, i] = (i * ACROSS, middle[key])
            y += height
    lanes = {(p, k): [entries[p, i] for i in range(depth[p] + 1, depth[k])] for k, box in boxes.items() for p in box.parents}
    return places, lanes


def _edge(start: Point, lane: Sequence[Point], end: Point, *, learns: bool) -> Markup:
    """A line from one box's right side to another's left, straight within the columns that it passes; broken from a teacher."""
    x, y = start[0] + WIDTH, start[1] + HEIGHT / 2
    path = f"M{x:.0f} {y:.0f}"
    for left, middle in [*lane, (end[0], end[1] + HEIGHT / 2)]:
        bend = (left - x) / 2
        path += f" C{x + bend:.0f} {y:.0f} {left - bend:.0f} {middle:.0f} {left:.0f} {middle:.0f}"
        x, y = left + WIDTH, middle
        path += f" H{x:.0f}" if (left, middle) in lane else ""
    return Markup('<path{} d="{}"/>').format(Markup(' class="teacher"') if learns else "", path)


def _node(box: Box, x: float, y: float) -> Markup:
    corner = {"x": x, "y": y, "width": WIDTH, "height": HEIGHT, "text_x": x + 10, "name_y": y + 19, "note_y": y + 36}
    return NODE.format(kind=box.kind, name=_short(box.name, 24), note=_short(box.note, 28), **corner)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
