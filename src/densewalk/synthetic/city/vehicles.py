"""Cars, buses and trucks: outlines from the side, extruded."""

from collections.abc import Sequence
from itertools import pairwise
from math import hypot

import numpy as np
from numpy.random import Generator

from densewalk.synthetic.city.items import Item
from densewalk.synthetic.city.raster import Number, Quad, Texture
from densewalk.synthetic.city.sketch import VIVID, Color, Points, Sketch, dim, pick
from densewalk.synthetic.city.street import Street

PAINTS: list[Color] = [
    (178, 30, 34),
    (28, 56, 120),
    (224, 224, 222),
    (40, 42, 46),
    (140, 146, 152),
    (36, 96, 70),
    (206, 168, 60),
    (96, 130, 168),
]
GLASS: Color = (58, 72, 84)
# outlines from the rear bumper over the top to the front bumper, x from the rear, y up; and what each stretch is
CARS: list[tuple[Points, float]] = [
    ([(0, 0.3), (0.05, 0.92), (0.75, 0.98), (1.35, 1.42), (2.7, 1.42), (3.4, 0.95), (4.4, 0.8), (4.5, 0.3)], 1.78),
    ([(0, 0.3), (0.08, 0.95), (0.25, 1.0), (0.7, 1.5), (2.5, 1.5), (3.1, 1.0), (3.85, 0.85), (3.95, 0.3)], 1.72),
    ([(0, 0.35), (0.05, 1.05), (0.2, 1.1), (0.45, 1.72), (2.8, 1.72), (3.4, 1.12), (4.35, 1.0), (4.45, 0.35)], 1.86),
]
CAR_FACES = ("rear", "paint", "glass", "paint", "glass", "paint", "front")


def car(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """A saloon, a hatchback or something higher; doors, windows, lamps and wheels are drawn on the sides."""
    outline, width = CARS[rng.integers(len(CARS))]
    paint = pick(rng, PAINTS)
    side = Sketch(outline[-1][0], outline[4][1], 48)
    side.polygon(outline, paint)
    side.polygon([*outline[:2], (outline[-2][0], 0.62), outline[-1]], dim(paint, 0.82))
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = outline[2:6]
    side.polygon([(x0 + 0.18, y0 + 0.03), (x1 + 0.08, y1 - 0.1), (x2 - 0.06, y2 - 0.1), (x3 - 0.15, y3 + 0.03)], GLASS)
    side.polygon([(x1 + 0.1, y1 - 0.1), (x1 + 0.5, y1 - 0.1), (x0 + 0.6, y0 + 0.06)], dim(GLASS, 1.6))
    middle = (x0 + x3) / 2
    for x in (middle, x3 - 0.1):
        side.line([(x, 0.4), (x, y0)], 0.025, dim(paint, 0.6))
    side.line([(middle, y0), (middle, y1)], 0.08, dim(paint, 0.8))
    side.box(middle + 0.12, 0.78, middle + 0.32, 0.83, dim(paint, 0.5))
    side.box(0, 0.66, 0.22, 0.84, (190, 30, 30))
    side.box(outline[-1][0] - 0.25, 0.62, outline[-1][0], 0.76, (240, 236, 210))
    _tires(side, (0.19 * outline[-1][0], 0.8 * outline[-1][0]), 0.32)
    return _extrude(rng, outline, width, side, CAR_FACES, paint)


def _tires(side: Sketch, places: Sequence[float], radius: Number) -> None:
    for x in places:
        side.ellipse(x, radius, radius * 1.15, radius * 1.15, (24, 24, 26))
        side.ellipse(x, radius, radius, radius, (34, 34, 36))
        side.ellipse(x, radius, 0.6 * radius, 0.6 * radius, (164, 166, 170))
        side.ellipse(x, radius, 0.2 * radius, 0.2 * radius, (70, 70, 74))


def _extrude(rng: Generator, outline: Points, width: Number, side: Sketch, faces: Sequence[str], paint: Color) -> list[Quad]:
    """A body from its outline: both sides, and one face across for every stretch of the outline."""
    length, height = side.width, side.height
    texture, half = side.texture(rng), width / 2
    flat = texture.mirrored()
    quads = [
        Quad(np.array([[0, 0, half], [0, -height, height], [length, 0, -length / 2]]), texture),
        Quad(np.array([[0, 0, -half], [0, -height, height], [-length, 0, length / 2]]), flat),
    ]
    for ((x0, y0), (x1, y1)), face in zip(pairwise(outline), faces, strict=True):
        plane = np.array([[width, 0, -half], [0, y0 - y1, y1], [0, x0 - x1, x1 - length / 2]])
        quads.append(Quad(plane, _face(rng, width, hypot(x1 - x0, y1 - y0), face, paint)))
    return quads


def _face(rng: Generator, width: Number, height: Number, face: str, paint: Color) -> Texture:
    """A face of a vehicle; `front` is drawn upside down, as it lies in the outline."""
    sketch = Sketch(width, height, 40)
    sketch.box(0, 0, width, height, paint if face != "glass" else dim(paint, 0.8))
    if face in ("glass", "windscreen"):
        sketch.box(0.1, 0.05 * height, width - 0.1, 0.93 * height, GLASS)
        sketch.polygon([(0.2, 0.9 * height), (0.8, 0.9 * height), (0.3, 0.2 * height)], dim(GLASS, 1.6))
    if face in ("front", "rear"):
        up = (lambda y: height - y) if face == "front" else (lambda y: y)
        lamp = (246, 242, 214) if face == "front" else (196, 28, 30)
        sketch.box(0, up(0), width, up(0.3 * height), (52, 52, 56))
        sketch.box(0.35 * width, up(0.2 * height), 0.65 * width, up(0.42 * height), (236, 234, 220))
        for x in (0.06, 0.74):
            sketch.box(x * width, up(0.55 * height), (x + 0.2) * width, up(0.8 * height), lamp)
    if face == "front":
        sketch.box(0.3 * width, height - 0.75 * height, 0.7 * width, height - 0.5 * height, (38, 38, 42))
    return sketch.texture(rng)


def bus(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Windows all along, two doors, a stripe; front and rear are glass above, lamps below."""
    length, height, paint = 10.5, 3.0, pick(rng, [(196, 40, 36), (232, 178, 40), (44, 96, 160), (60, 140, 90), (236, 234, 228)])
    side = Sketch(length, height, 36)
    side.box(0, 0.35, length, height, paint)
    side.box(0, 0.75, length, 0.95, dim(paint, 0.6))
    for x in np.arange(0.3, length - 1.2, 1.35):
        side.box(x, 1.3, x + 1.2, 2.5, GLASS)
        side.polygon([(x, 2.5), (x + 0.6, 2.5), (x, 1.8)], dim(GLASS, 1.5))
    for x in (length - 1.3, 0.45 * length):
        side.box(x, 0.45, x + 1.1, 2.5, dim(GLASS, 0.8))
        side.line([(x + 0.55, 0.45), (x + 0.55, 2.5)], 0.06, paint)
    _tires(side, (2.2, 8.2), 0.48)
    outline = [(0, 0.35), (0, 1.3), (0, 2.8), (0.1, height), (length - 0.1, height), (length, 2.8), (length, 1.2), (length, 0.35)]
    return _extrude(rng, outline, 2.5, side, ("rear", "windscreen", "paint", "paint", "paint", "windscreen", "front"), paint)


def truck(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """A cab and a box with lettering."""
    length, height, paint = 7.6, 3.2, pick(rng, PAINTS)
    cargo = pick(rng, [(228, 226, 220), (206, 200, 186), (190, 204, 214)])
    side = Sketch(length, height, 36)
    side.box(0, 0.75, 5.6, height, cargo)
    side.box(0, 0.55, 5.8, 0.78, (48, 48, 52))
    side.box(1.2, 1.6, 4.4, 2.5, pick(rng, VIVID))
    for x in np.arange(1.5, 4.0, 0.5):
        side.box(x, 1.85, x + 0.3, 2.25, (240, 238, 230))
    cab = [(5.75, 0.4), (5.75, 2.45), (6.9, 2.4), (7.5, 1.3), (length, 0.4)]
    side.polygon(cab, paint)
    side.polygon([(6.1, 1.4), (6.1, 2.2), (6.8, 2.2), (7.2, 1.4)], GLASS)
    _tires(side, (1.5, 6.5), 0.46)
    outline = [(0, 0.6), (0, height), (5.6, height), (5.7, 2.45), (6.9, 2.4), (7.5, 1.3), (length, 0.4)]
    quads = _extrude(rng, outline, 2.4, side, ("rear", "paint", "paint", "paint", "windscreen", "front"), paint)
    back = Sketch(2.4, 2.6, 40)
    back.box(0, 0, 2.4, 2.6, cargo)
    back.line([(1.2, 0.3), (1.2, 2.5)], 0.05, dim(cargo, 0.6))
    for x in (0.1, 2.0):
        back.box(x, 0.05, x + 0.3, 0.22, (196, 28, 30))
    quads[2] = Quad(quads[2].plane, back.texture(rng))
    return quads
