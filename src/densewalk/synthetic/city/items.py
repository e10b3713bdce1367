"""What stands and moves in the street: a table of items, each at a closed formula of time."""

from math import cos, sin
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator

from densewalk.synthetic.city.street import AHEAD, BEHIND, TREE_SPACING, Street

WALKING_SPEED = 1.4
Rows = list[tuple[str, float, float, float, float]]  # kind, s, d, speed, size
# ADE20K ids (objectInfo150.txt) of all that can appear; their order here is the order of classes.txt and of walk_masks
ADE = {
    "building": 2,
    "sky": 3,
    "tree": 5,
    "road": 7,
    "windowpane": 9,
    "grass": 10,
    "sidewalk": 12,
    "person": 13,
    "earth": 14,
    "door": 15,
    "plant": 18,
    "car": 21,
    "signboard": 44,
    "bench": 70,
    "bus": 81,
    "truck": 84,
    "awning": 87,
    "streetlight": 88,
    "pole": 94,
    "bicycle": 128,
    "traffic light": 137,
    "ashcan": 139,
}


class Kind(NamedTuple):
    """A kind of object: its parts, in the order of its textures' part numbers, and the axes that its quads are given in.

    labels, coco: ADE20K name and COCO category (0: none) of every part; a kind without categories is stuff, without identity.
    axes: `street` point to the right, up and along the street, `lane` along the traffic on that side, `camera` away from the camera.
    shadow: width and length.
    """

    labels: tuple[str, ...]
    coco: tuple[int, ...] = ()
    axes: Literal["world", "street", "lane", "camera"] = "street"
    shadow: tuple[float, float] | None = None


KINDS = {
    "building": Kind(("building", "windowpane", "door", "awning", "signboard"), axes="world"),
    "hedge": Kind(("plant",), axes="world"),
    "tree": Kind(("tree",), (0,), "camera", (4.2, 4.2)),
    "person": Kind(("person",), (1,), "camera", (0.8, 0.8)),
    "stroller": Kind(("person",), (1,), "camera", (0.8, 0.8)),
    "cyclist": Kind(("bicycle", "person"), (2, 1), "camera", (0.9, 1.9)),
    "bicycle": Kind(("bicycle",), (2,), "street", (1.7, 0.6)),
    "car": Kind(("car",), (3,), "lane", (2.3, 5.1)),
    "bus": Kind(("bus",), (6,), "lane", (3.0, 11.3)),
    "truck": Kind(("truck",), (8,), "lane", (2.9, 8.3)),
    "traffic light": Kind(("pole", "traffic light"), (0, 10)),
    "stop sign": Kind(("pole", "signboard"), (0, 13)),
    "sign": Kind(("pole", "signboard"), (0, 0)),
    "streetlight": Kind(("streetlight",), (0,)),
    "ashcan": Kind(("ashcan",), (0,), "camera", (0.9, 0.9)),
    "bench": Kind(("bench",), (15,), "lane", (0.9, 2.0)),
    "potted plant": Kind(("plant",), (64,), "camera", (0.9, 0.9)),
}


class Item(NamedTuple):
    """Something that stands in the street or moves along it; `number` seeds its looks, `size` is its length along the street."""

    kind: str
    s: float
    d: float
    speed: float
    size: float
    number: int


def populate(rng: Generator, street: Street, seconds: float, side: float) -> list[Item]:
    """Everything in the street, in an order that gives each thing its number; numbers start at 1."""
    start, end = -BEHIND, WALKING_SPEED * seconds + AHEAD
    rows: Rows = []
    for flank in (-1.0, 1.0):
        rows += _buildings(rng, street, start, end, flank)
        rows += _furniture(rng, street, start, end, flank)
        rows += _parked(rng, street, start, end, flank)
        rows += _traffic(rng, street, seconds, flank)
        rows += _pedestrians(rng, street, seconds, flank, side)
    return [Item(*row, number) for number, row in enumerate(rows, start=1)]


def _buildings(rng: Generator, street: Street, start: float, end: float, flank: float) -> Rows:
    """Houses wall to wall; on the straight stretches now and then a small park behind a hedge, houses at its back."""
    rows: Rows = []
    s = start - 10
    while s < end:
        park = street.straight(s, s + 16) and rng.random() < 0.25
        size = rng.uniform(12, 16) if park else rng.uniform(7, 14)
        d = flank * (street.facade + rng.choice([0.0, 0.0, 0.4]))
        if park:
            rows += [("hedge", s + size / 2, d, 0.0, size), ("building", s + size / 2, d + 16 * flank, 0.0, size + 14)]
            rows += [("tree", s + u * size, d + v * flank, 0.0, 5.0) for u, v in ((0.2, 4.0), (0.55, 8.0), (0.8, 3.5))]
        else:
            rows.append(("building", s + size / 2, d, 0.0, size))
        s += size
    return rows


def _furniture(rng: Generator, street: Street, start: float, end: float, flank: float) -> Rows:
    """Trees, lamps, signs and bins along the curb; benches and pots along the facades; lights at the crossings."""
    rows: Rows = []
    curb, wall = flank * (street.road + 0.7), flank * (street.facade - 0.5)
    avenue = rng.random() < 0.7
    for s in np.arange(start - start % TREE_SPACING, end, TREE_SPACING):
        if rng.random() < (0.75 if avenue else 0.25):
            rows.append(("tree", s + TREE_SPACING / 2, flank * (street.road + 0.9), 0.0, 4.0))
        kind = rng.choice(["ashcan", "sign", "stop sign", "bicycle", "none"], p=[0.2, 0.15, 0.07, 0.25, 0.33])
        if kind != "none":
            rows.append((str(kind), s + rng.uniform(0.5, 2.5), curb, 0.0, 1.8))
        kind = rng.choice(["bench", "potted plant", "none"], p=[0.15, 0.35, 0.5])
        if kind != "none":
            rows.append((str(kind), s + rng.uniform(0, 8), wall, 0.0, 1.6))
    rows += [("streetlight", s + 4 * flank, curb, 0.0, 2.0) for s in np.arange(start - start % 27, end, 27.0)]
    return rows + [("traffic light", s - 0.6, curb, 0.0, 1.0) for s in np.arange(start - start % street.zebra, end, street.zebra)]


def _parked(rng: Generator, street: Street, start: float, end: float, flank: float) -> Rows:
    rows: Rows = []
    s = start
    while s < end:
        if 3 < s % street.zebra < street.zebra - 6 and rng.random() < 0.6:
            rows.append(("car", s, flank * (street.road - 1.05), 0.0, 4.6))
        s += rng.uniform(5.2, 6.2)
    return rows


def _traffic(rng: Generator, street: Street, seconds: float, flank: float) -> Rows:
    """Cars, buses, trucks and cyclists, on the right; all of a lane keep one speed, so that none runs into another."""
    rows: Rows = []
    kinds, sizes = ("car", "bus", "truck"), {"car": 4.6, "bus": 10.5, "truck": 7.6}
    busy = rng.uniform(14, 40)
    for speed, d, gap in ((rng.uniform(5, 8), 1.55, busy), (rng.uniform(3.2, 4.2), 3.25, 1.3 * busy)):
        s, last = _reach(flank * speed, seconds)
        while (s := s + 12 + rng.exponential(gap)) < last:
            kind = "cyclist" if d > 3 else str(rng.choice(kinds, p=[0.74, 0.14, 0.12]))
            rows.append((kind, s, flank * d, flank * speed, sizes.get(kind, 1.8)))
    return rows


def _pedestrians(rng: Generator, street: Street, seconds: float, flank: float, side: float) -> Rows:
    """Walkers in lanes beside the camera's own; on the other pavement some go to and fro between curb and doors."""
    rows: Rows = []
    for speed in (-rng.uniform(1.1, 1.5), -rng.uniform(0.9, 1.3), rng.uniform(0.7, 0.95), rng.uniform(1.75, 2.05)):
        s, last = _reach(speed, seconds)
        offset = rng.choice([-1, 1]) * rng.uniform(0.75, 1.1)
        while (s := s + 1.5 + rng.exponential(13)) < last:
            rows.append(("person", s, flank * (street.walkway + offset) + rng.uniform(-0.1, 0.1), speed, 1.0))
    if flank != side:
        rows += [("stroller", s, flank * (street.walkway - 0.2), 0.0, 1.0) for s in np.arange(4, WALKING_SPEED * seconds + AHEAD, 17.0)]
    return rows


def _reach(speed: float, seconds: float) -> tuple[float, float]:
    """Between which places at time 0 something of this speed comes into view during the walk."""
    drift = (WALKING_SPEED - speed) * seconds
    return min(0.0, drift) - BEHIND, max(0.0, drift) + AHEAD


def appearance(item: Item, time: float, angle: float, *, far: bool) -> int:
    """Which texture shows. The state of a traffic light; of who walks or rides the phase of the gait in eighths (from afar in halves),
    plus 8 if seen from the side, 16 from behind, 32 heading left.

    angle: from the line of sight to where the item heads.
    """
    if item.kind == "traffic light":
        return int(time / 6 + 0.37 * item.number) % 3
    if item.kind not in ("person", "stroller", "cyclist"):
        return 0
    phase = int(8 * (1.05 * time + 0.618 * item.number)) % 8
    return (phase & 4 if far else phase) + 8 * (abs(sin(angle)) > 0.5) + 16 * (cos(angle) > 0) + 32 * (sin(angle) < 0)
