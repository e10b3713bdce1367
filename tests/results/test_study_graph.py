"""The study's diagram: every box and line is there, nothing lies on anything else, and names cannot break the page."""

import re
from xml.etree import ElementTree

import pytest

from densewalk.results.page.study_graph import HEIGHT, WIDTH, Box, layout, study_diagram
from densewalk.results.plan import Plan


def run(method, init, *data, seeds=(0,)):
    return {"method": method, "init": init, "arch": "vit_small_patch16", "data": list(data), "seeds": list(seeds)}


PLAN = {
    "study": "Chains",
    "runs": {
        "start": run("none", "random"),
        "dora": run("dora", "random", "venice", seeds=(0, 1, 2)),
        "neco_dora": run("neco", "dora", "coco"),
        "neco_dino": run("neco", "dino_s16", "coco"),
        "dino": run("none", "dino_s16"),
        "taught": {**run("distill", "random", "venice"), "teachers": ["dino_s16", "dora", "lite0"]},
        "tt_neco_dora": run("timetuning", "neco_dora", "venice", "coco"),
    },
    "evaluations": {},
}


def drawn(plan, incomplete=None):
    """The boxes by title, with their class and corner, and the ends of the lines."""
    svg = ElementTree.fromstring(str(study_diagram(Plan.model_validate({"hashes": {}, **plan}), incomplete or {})))
    boxes = {}
    for group in svg.iter("g"):
        title, note = [text.text for text in group.iter("text")]
        rect = next(group.iter("rect"))
        boxes[title, note] = (group.get("class"), float(rect.get("x")), float(rect.get("y")))
    lines = [tuple(map(float, re.findall(r"-?\d+(?:\.\d+)?", path.get("d")))) for path in svg.iter("path")]
    return svg, boxes, [(line[:2], line[-2:]) for line in lines]


def test_every_run_and_all_that_it_is_made_from_is_a_box():
    _, boxes, _ = drawn(PLAN)
    assert {key: kind for key, (kind, *_) in boxes.items()} == {
        ("venice", "data"): "source",
        ("coco", "data"): "source",
        ("random", "random weights"): "source",
        ("dino_s16", "checkpoint"): "source",
        ("start", "as it is, seed 0"): "run",
        ("dora", "dora, 3 seeds"): "run",
        ("neco_dora", "neco, seed 0"): "run",
        ("neco_dino", "neco, seed 0"): "run",
        ("dino", "as it is, seed 0"): "run",
        ("lite0", "checkpoint"): "source",
        ("taught", "distill, seed 0"): "run",
        ("tt_neco_dora", "timetuning, seed 0"): "run",
    }


def test_lines_lead_from_what_a_run_is_made_from_to_it():
    _, boxes, lines = drawn(PLAN)
    corner = {title: (x, y) for (title, _), (_, x, y) in boxes.items()}
    edges = {
        ("random", "start"), ("random", "dora"), ("venice", "dora"), ("dora", "neco_dora"), ("coco", "neco_dora"),
        ("dino_s16", "neco_dino"), ("coco", "neco_dino"), ("dino_s16", "dino"),
        ("neco_dora", "tt_neco_dora"), ("venice", "tt_neco_dora"), ("coco", "tt_neco_dora"),
        ("random", "taught"), ("venice", "taught"), ("dino_s16", "taught"), ("dora", "taught"), ("lite0", "taught"),
    }  # fmt: skip
    expected = {((corner[a][0] + WIDTH, corner[a][1] + HEIGHT / 2), (corner[b][0], corner[b][1] + HEIGHT / 2)) for a, b in edges}
    assert set(lines) == expected


def test_lines_from_teachers_are_broken():
    svg, boxes, lines = drawn(PLAN)
    left = {(x + WIDTH, y + HEIGHT / 2): title for (title, _), (_, x, y) in boxes.items()}
    broken = [path.get("class") == "teacher" for path in svg.iter("path")]
    assert {left[start] for (start, _), learns in zip(lines, broken, strict=True) if learns} == {"dino_s16", "dora", "lite0"}
    assert sum(broken) == 3


def test_boxes_do_not_touch_and_lie_inside():
    svg, boxes, _ = drawn(PLAN)
    corners = [(x, y) for _, x, y in boxes.values()]
    for i, (x, y) in enumerate(corners):
        assert all(abs(x - u) > WIDTH or abs(y - v) > HEIGHT for u, v in corners[:i])
    _, _, wide, high = map(float, svg.get("viewBox").split())
    assert all(0 <= x <= wide - WIDTH and 0 <= y <= high - HEIGHT for x, y in corners)


def test_a_line_passes_behind_no_box():
    svg, boxes, _ = drawn(PLAN)
    corners = [(x, y) for _, x, y in boxes.values()]
    for path in svg.iter("path"):
        points = along(path.get("d"))
        for x, y in points[1:-1]:
            assert not any(u < x < u + WIDTH and v < y < v + HEIGHT for u, v in corners)


def along(path, steps=40):
    """Points of a path of absolute M, C and H."""
    points = []
    for kind, numbers in re.findall(r"([MCH])([-\d. ]+)", path):
        n = [float(v) for v in numbers.split()]
        if kind == "M":
            points.append((n[0], n[1]))
            continue
        (x, y), ts = points[-1], [(i + 1) / steps for i in range(steps)]
        a, b, end = ((n[0], n[1]), (n[2], n[3]), (n[4], n[5])) if kind == "C" else ((x, y), (n[0], y), (n[0], y))
        for t in ts:
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            points.append(tuple(sum(w * p[i] for w, p in zip(weights, ((x, y), a, b, end), strict=True)) for i in (0, 1)))
    return points


def test_what_is_built_on_something_stands_to_its_right():
    chain = (("c", ("b",)), ("b", ("a",)), ("a", ()), ("d", ("a", "c")))
    boxes = {("run", name): Box(name, "", "run", [("run", p) for p in parents]) for name, parents in chain}
    places, _ = layout(boxes)
    assert all(places[p][0] < places[key][0] for key, box in boxes.items() for p in box.parents)


def test_a_run_may_be_called_like_its_data():
    _, boxes, lines = drawn({**PLAN, "runs": {"venice": run("dora", "random", "venice")}})
    assert set(boxes) == {("venice", "data"), ("random", "random weights"), ("venice", "dora, seed 0")}
    assert len(lines) == 2


def test_a_gap_is_marked_and_says_what_is_missing():
    _, boxes, _ = drawn(PLAN, {"dora": "failed: 2 of 3 seeds"})
    assert boxes["dora", "failed: 2 of 3 seeds"][0] == "gap"


def test_the_description_for_screen_readers_names_every_run_that_is_made_from_something():
    svg, *_ = drawn(PLAN)
    assert svg.get("role") == "img"
    assert "tt_neco_dora from neco_dora, venice, coco" in svg.get("aria-label")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a"b&c', "x" * 80])
def test_names_are_text(name):
    svg, boxes, _ = drawn({**PLAN, "runs": {name: run("dora", "random", name + "2")}})
    assert not list(svg.iter("script"))
    assert all(len(title) <= 24 for title, _ in boxes)
    assert f"{name} from random, {name}2" in svg.get("aria-label")
