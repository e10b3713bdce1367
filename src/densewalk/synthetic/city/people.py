"""People and bicycles, seen from the side (heading right), from the front or from behind, in eight phases of their gait."""

from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from densewalk.synthetic.city.items import Item
from densewalk.synthetic.city.raster import Number, Quad, Texture, upright
from densewalk.synthetic.city.sketch import VIVID, Color, Sketch, dim, pick
from densewalk.synthetic.city.street import Street

SKINS: list[Color] = [(238, 196, 164), (214, 164, 126), (168, 116, 82), (112, 74, 52)]
HAIRS: list[Color] = [(40, 30, 26), (92, 60, 36), (176, 136, 80), (130, 130, 132), (24, 22, 24)]
TOPS: list[Color] = [
    (186, 40, 44),
    (36, 70, 140),
    (232, 228, 220),
    (44, 46, 52),
    (60, 120, 80),
    (226, 176, 50),
    (140, 90, 150),
    (120, 130, 140),
]
TROUSERS: list[Color] = [(44, 56, 92), (38, 38, 42), (120, 104, 80), (86, 90, 98)]


class Clothes(NamedTuple):
    """A person's looks."""

    skin: Color
    hair: Color
    top: Color
    bottom: Color
    skirt: bool
    bag: Color | None
    tall: Number

    @classmethod
    def random(cls, rng: Generator) -> "Clothes":
        """Anyone."""
        skirt, bag = bool(rng.random() < 0.25), rng.random() < 0.35
        skin, hair, top, bottom = (pick(rng, colors) for colors in (SKINS, HAIRS, TOPS, TROUSERS))
        return cls(skin, hair, top, bottom, skirt, pick(rng, VIVID) if bag else None, rng.uniform(0.9, 1.06))


def person(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Someone who walks."""
    clothes = Clothes.random(rng)
    phase, side, back = 2 * pi * (variant % 8) / 8, bool(variant & 8), bool(variant & 16)
    sketch = Sketch(1.1, 1.9, 72)
    _body(sketch, clothes, phase, side, back)
    sketch.shade(1.08, 0.86, 0.95, 1.05)
    return [upright(_turned(sketch.texture(rng), variant), 1.1 * clothes.tall, 1.9 * clothes.tall)]


def _turned(texture: Texture, variant: int) -> Texture:
    return texture.mirrored() if variant & 32 else texture


def _body(sketch: Sketch, c: Clothes, phase: Number, side: bool, back: bool) -> None:
    """A walker of 1.8 m: far limbs, near limbs, trunk, head; seen from the side (heading right), from the front or the back."""
    x, broad, swing = 0.55, 0.14 if side else 0.21, 0.5 if side else 0.12
    for sign in (-1, 1):
        tone = 0.8 if sign < 0 else 1.0
        angle = sign * swing * sin(phase)
        hip = (x + (0.0 if side else 0.09 * sign), 0.9)
        lift = 0.35 * max(0.0, sign * cos(phase))
        knee = (hip[0] + 0.43 * sin(angle), hip[1] - 0.43 * cos(angle))
        foot = (knee[0] + 0.42 * sin(angle - lift * side), knee[1] - 0.42 * cos(angle - lift))
        leg = c.skin if c.skirt else c.bottom
        sketch.line([hip, knee], 0.17, dim(c.bottom, tone))
        sketch.line([knee, foot], 0.12, dim(leg, tone))
        sketch.line([(foot[0] - 0.03, foot[1]), (foot[0] + (0.14 if side else 0.02), foot[1] - 0.02)], 0.09, dim((50, 44, 42), tone))
        _arm(sketch, c, (x + (0.0 if side else (broad + 0.03) * sign), 1.38), -angle, tone)
    if c.skirt:
        sketch.polygon([(x - broad, 0.95), (x + broad, 0.95), (x + broad + 0.1, 0.5), (x - broad - 0.1, 0.5)], c.bottom)
    hips = 0.85 * broad
    sketch.polygon([(x - broad, 1.45), (x + broad, 1.45), (x + hips, 0.88), (x - hips, 0.88)], c.top)
    sketch.ellipse(x, 1.44, broad, 0.06, c.top)
    if side:
        _arm(sketch, c, (x, 1.38), swing * sin(phase), 0.9)
    if c.bag is not None:
        at = (-0.32, 1.02, -0.1, 1.42) if side else (-0.15, 1.02, 0.15, 1.4) if back else (0.2, 0.72, 0.4, 1.0)
        sketch.box(x + at[0], at[1], x + at[2], at[3], c.bag)
    _head(sketch, c, x, side, back)


def _arm(sketch: Sketch, c: Clothes, shoulder: tuple[float, float], angle: Number, tone: Number) -> None:
    x, y = shoulder
    elbow = (x + 0.28 * sin(angle), y - 0.28 * cos(angle))
    hand = (elbow[0] + 0.26 * sin(angle + 0.25), elbow[1] - 0.26 * cos(angle + 0.25))
    sketch.line([shoulder, elbow, hand], 0.1, dim(c.top, 0.88 * tone))
    sketch.ellipse(*hand, 0.055, 0.06, dim(c.skin, tone))


def _head(sketch: Sketch, c: Clothes, x: Number, side: bool, back: bool, y: Number = 1.64) -> None:
    sketch.box(x - 0.05, y - 0.18, x + 0.05, y - 0.08, dim(c.skin, 0.85))
    sketch.ellipse(x, y + 0.01, 0.115, 0.145, c.hair)
    if side or not back:
        sketch.ellipse(x + (0.035 if side else 0.0), y - 0.03, 0.085, 0.115, c.skin)


def _wheels(sketch: Sketch, x: Number, gap: Number, angle: Number, color: Color) -> None:
    """A bicycle's wheels, frame, saddle and handlebar, seen from the side, heading right."""
    for hub in (x - gap / 2, x + gap / 2):
        sketch.ring(hub, 0.35, 0.32, 0.05, (34, 34, 36))
        for spoke in np.arange(4) * pi / 4 + angle:
            u, v = 0.3 * cos(spoke), 0.3 * sin(spoke)
            sketch.line([(hub - u, 0.35 - v), (hub + u, 0.35 + v)], 0.014, (120, 120, 124))
    pedal, seat, head = (x - 0.05, 0.33), (x - 0.2, 0.85), (x + 0.38, 0.88)
    rear, front = (x - gap / 2, 0.35), (x + gap / 2, 0.35)
    sketch.line([rear, pedal, seat, rear], 0.045, color)
    sketch.line([seat, head, pedal], 0.045, color)
    sketch.line([front, head, (x + 0.34, 1.05), (x + 0.46, 1.08)], 0.045, color)
    sketch.line([(x - 0.32, 0.92), (x - 0.1, 0.92)], 0.07, (30, 28, 28))


def bicycle(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Parked across the curb."""
    sketch = Sketch(1.8, 1.15, 72)
    _wheels(sketch, 0.9, 1.02, 0.2, pick(rng, VIVID))
    return [upright(sketch.texture(rng), 1.8, 1.15)]


def cyclist(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Someone on a bicycle; parts: bicycle, person."""
    clothes, frame = Clothes.random(rng), pick(rng, VIVID)
    phase, side, back = 2 * pi * (variant % 8) / 8, bool(variant & 8), bool(variant & 16)
    sketch = Sketch(1.8, 1.85, 64)
    if side:
        _rider_beside(sketch, clothes, frame, phase)
    else:
        _rider_along(sketch, clothes, frame, phase, back)
    sketch.shade(1.06, 0.88, 0.95, 1.05)
    return [upright(_turned(sketch.texture(rng), variant), 1.8, 1.85)]


def _rider_beside(sketch: Sketch, c: Clothes, frame: Color, phase: Number) -> None:
    x, hip = 0.9, (0.72, 0.98)
    _wheels(sketch, x, 1.02, -phase, frame)
    for sign in (-1, 1):
        foot = (x - 0.05 + 0.16 * sign * cos(phase), 0.33 - 0.16 * sign * sin(phase))
        knee = ((hip[0] + foot[0]) / 2 + 0.17, (hip[1] + foot[1]) / 2 + 0.08)
        sketch.line([hip, knee, foot], 0.13, dim(c.bottom, 0.9 + 0.1 * sign), 2)
        sketch.line([foot, (foot[0] + 0.12, foot[1])], 0.08, (50, 44, 42), 2)
    shoulder = (1.0, 1.46)
    sketch.line([hip, shoulder], 0.26, c.top, 2)
    sketch.line([shoulder, (1.08, 1.2), (1.32, 1.1)], 0.09, dim(c.top, 0.85), 2)
    sketch.ellipse(1.1, 1.66, 0.11, 0.13, c.skin, 2)
    sketch.ellipse(1.08, 1.71, 0.13, 0.1, frame, 2)


def _rider_along(sketch: Sketch, c: Clothes, frame: Color, phase: Number, back: bool) -> None:
    x = 0.9
    sketch.line([(x, 0.05), (x, 0.68)], 0.07, (34, 34, 36))
    sketch.line([(x, 0.68), (x, 1.02)], 0.06, frame)
    sketch.line([(x - 0.28, 1.06), (x + 0.28, 1.06)], 0.05, (60, 60, 64))
    for sign in (-1, 1):
        low = 0.33 + 0.16 * sign * sin(phase)
        sketch.line([(x + 0.1 * sign, 0.95), (x + 0.17 * sign, low + 0.32), (x + 0.12 * sign, low)], 0.13, c.bottom, 2)
        sketch.line([(x + 0.2 * sign, 1.42), (x + 0.31 * sign, 1.22), (x + 0.26 * sign, 1.08)], 0.09, dim(c.top, 0.85), 2)
    sketch.polygon([(x - 0.2, 1.48), (x + 0.2, 1.48), (x + 0.16, 0.9), (x - 0.16, 0.9)], c.top, 2)
    sketch.ellipse(x, 1.66, 0.1, 0.13, c.hair if back else c.skin, 2)
    sketch.ellipse(x, 1.73, 0.13, 0.09, frame, 2)
