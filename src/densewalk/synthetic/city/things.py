"""Buildings, plants and street furniture."""

from math import hypot, pi, sin

import numpy as np
from numpy.random import Generator

from densewalk.synthetic.city.items import Item
from densewalk.synthetic.city.raster import Number, Quad, Texture, upright, wall
from densewalk.synthetic.city.sketch import VIVID, Color, Points, Sketch, dim, pick, vary
from densewalk.synthetic.city.street import Street

WALLS: list[Color] = [
    (150, 78, 62),
    (198, 170, 128),
    (222, 208, 178),
    (168, 160, 150),
    (206, 150, 120),
    (128, 134, 142),
    (232, 226, 214),
    (112, 66, 56),
    (188, 184, 142),
    (160, 178, 186),
]
FRAMES: list[Color] = [(236, 234, 228), (70, 52, 42), (52, 58, 62), (228, 222, 200)]
STOREY = 3.1


def building(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Facade, the side walls' front parts, a roof or a parapet, and over some shops an awning that stands out."""
    flank = 1.0 if item.d > 0 else -1.0
    # as seen from the street the left end of a house on the right is its far end
    ends = [item.s + flank * item.size / 2, item.s - flank * item.size / 2]
    near, far = ([street.world(s, item.d + depth * flank) for s in ends] for depth in (0, 7))
    width = hypot(near[1][0] - near[0][0], near[1][1] - near[0][1])
    storeys = int(rng.integers(2, 6))
    height = storeys * STOREY + 1.6
    base = pick(rng, WALLS)
    front, shop = _facade(rng, width, height, storeys, base)
    side = Sketch(7, height, 8)
    side.box(0, 0, 7, height, dim(base, 0.92))
    plain = side.texture(rng)
    quads = [wall(near, 0, height, front), wall([far[0], near[0]], 0, height, plain), wall([near[1], far[1]], 0, height, plain)]
    if rng.random() < 0.6:
        quads.append(_roof(rng, near, far, height))
    if shop and rng.random() < 0.6:
        quads.append(_awning(rng, street, item, flank))
    return quads


def _roof(rng: Generator, near: Points, far: Points, height: Number) -> Quad:
    """The steep front of a mansard."""
    sketch = Sketch(10, 2.6, 16)
    color = pick(rng, [(146, 74, 54), (92, 88, 92), (120, 92, 76)])
    sketch.box(0, 0, 10, 2.6, color)
    for y in np.arange(0, 2.6, 0.35):
        sketch.line([(0, y), (10, y)], 0.06, dim(color, 0.75))
    (x0, z0), (x1, z1), (fx, fz) = near[0], near[1], far[0]
    down = np.array([0.2 * (x0 - fx), -2.2, 0.2 * (z0 - fz)])
    corner = np.array([x0, height, z0]) - down
    return Quad(np.stack([np.array([x1 - x0, 0, z1 - z0]), down, corner], axis=1), sketch.texture(rng))


def _awning(rng: Generator, street: Street, item: Item, flank: Number) -> Quad:
    """Striped cloth, from 2.9 m at the wall down to 2.3 m."""
    sketch = Sketch(4, 1, 24)
    color = pick(rng, VIVID)
    for x in np.arange(0, 4, 0.8):
        sketch.box(x, 0, x + 0.4, 1, color, 4)
        sketch.box(x + 0.4, 0, x + 0.8, 1, (235, 232, 224), 4)
    reach = 0.4 * item.size
    (x0, z0), (x1, z1) = (street.world(item.s + flank * u, item.d - 0.02 * flank) for u in (reach, -reach))
    xo, zo = street.world(item.s + flank * reach, item.d - 1.1 * flank)
    plane = np.array([[x1 - x0, xo - x0, x0], [0, -0.6, 2.9], [z1 - z0, zo - z0, z0]])
    return Quad(plane, sketch.texture(rng))


def _facade(rng: Generator, width: Number, height: Number, storeys: int, base: Color) -> tuple[Texture, bool]:
    """Parts: building, windowpane, door, awning, signboard. Also says whether there is a shop."""
    sketch = Sketch(width, height, 22 if width < 18 else 11)
    _masonry(rng, sketch, base)
    shop = bool(rng.random() < 0.5)
    frame = pick(rng, FRAMES)
    if shop:
        _shop_front(rng, sketch, frame)
    spacing, size = rng.uniform(2.0, 3.2), (rng.uniform(1.0, 1.5), rng.uniform(1.4, 1.9))
    columns = max(1, int((width - 0.6) / spacing))
    margin = (width - columns * spacing) / 2
    door = int(rng.integers(columns))
    for floor in range(1 if shop else 0, storeys):
        for column in range(columns):
            x, y = margin + (column + 0.5) * spacing, floor * STOREY + 0.95
            if floor == 0 and column == door:
                _door(rng, sketch, x, frame)
            else:
                _window(rng, sketch, x, y, size, frame)
    sketch.box(0, height - 0.5, width, height, dim(base, 1.15))
    sketch.box(0, height - 0.62, width, height - 0.5, dim(base, 0.6))
    sketch.box(0, STOREY + 0.02, width, STOREY + 0.2, dim(base, 1.12))
    sketch.shade(1, 1, 0.82, 1.05)
    return sketch.texture(rng), shop


def _masonry(rng: Generator, sketch: Sketch, base: Color) -> None:
    """Bricks, plaster or slabs of stone, on a darker plinth."""
    sketch.box(0, 0, sketch.width, sketch.height, base)
    style = int(rng.integers(3))
    if style:
        rows, columns = [(5, 12), (17, 30)][style - 1]  # texels of a stone
        height, width = sketch.canvas.shape[:2]
        stones = np.repeat(rng.uniform(0.86, 1.12, (height // rows + 1, width // columns + 2)), 2, axis=1)
        stones[::2] = np.roll(stones[::2], 1, axis=1)
        tones = np.repeat(np.repeat(stones, rows, axis=0), columns // 2, axis=1)
        tones[::rows] = 0.78
        sketch.tint(tones[:height, :width])
    sketch.box(0, 0, sketch.width, 0.5, dim(base, 0.65))


def _window(rng: Generator, sketch: Sketch, x: Number, y: Number, size: tuple[float, float], frame: Color) -> None:
    """Frame, reflecting glass, perhaps a curtain, a sill; sometimes light inside."""
    half, height = size[0] / 2, size[1]
    glass = (232, 196, 120) if rng.random() < 0.08 else vary(rng, (70, 88, 104), 10)
    sketch.box(x - half - 0.1, y - 0.1, x + half + 0.1, y + height + 0.1, frame)
    sketch.box(x - half, y, x + half, y + height, glass, 2)
    sketch.polygon([(x - half, y + height), (x + half, y + height), (x - half, y + 0.4 * height)], dim(glass, 1.35), 2)
    if rng.random() < 0.4:
        sketch.box(x - half, y + 0.55 * height, x + half, y + height, vary(rng, (214, 206, 192)), 2)
    sketch.line([(x, y), (x, y + height)], 0.06, frame, 2)
    sketch.line([(x - half, y + 0.62 * height), (x + half, y + 0.62 * height)], 0.05, frame, 2)
    sketch.box(x - half - 0.18, y - 0.2, x + half + 0.18, y - 0.08, dim(frame, 0.85))


def _door(rng: Generator, sketch: Sketch, x: Number, frame: Color, height: Number = 2.35) -> None:
    color = pick(rng, [(96, 58, 34), (40, 70, 56), (112, 32, 34), (42, 50, 82), (140, 100, 60)])
    sketch.box(x - 0.7, 0, x + 0.7, height + 0.15, frame)
    sketch.box(x - 0.55, 0.1, x + 0.55, height, color, 3)
    for left in (-0.42, 0.06):
        for y in (0.3, 1.3):
            sketch.box(x + left, y, x + left + 0.36, y + 0.8, dim(color, 0.72), 3)
    sketch.ellipse(x + 0.45, 1.15, 0.05, 0.05, (220, 190, 90), 3)


def _shop_front(rng: Generator, sketch: Sketch, frame: Color) -> None:
    """Dark frame, panes with goods, a door, and a sign with lettering along the top."""
    width, color = sketch.width, pick(rng, VIVID)
    sketch.box(0.3, 0, width - 0.3, 2.9, dim(color, 0.7))
    count = max(2, int(width / 2.2))
    step, door = (width - 0.8) / count, int(rng.integers(count))
    for number in range(count):
        x = 0.4 + number * step
        if number == door:
            _door(rng, sketch, x + step / 2, dim(color, 0.55), 2.2)
            continue
        glass = vary(rng, (88, 104, 112), 10)
        sketch.box(x + 0.08, 0.55, x + step - 0.08, 2.2, glass, 2)
        for goods in np.arange(x + 0.25, x + step - 0.3, 0.35):
            sketch.box(goods, 0.55, goods + 0.24, rng.uniform(0.8, 1.5), pick(rng, VIVID), 2)
        sketch.polygon([(x + 0.08, 2.2), (x + step / 2, 2.2), (x + 0.08, 1.3)], dim(glass, 1.4), 2)
    sketch.box(0.3, 2.35, width - 0.3, 3.0, color, 5)
    light = (244, 240, 224)
    for x in np.arange(0.2 * width, 0.8 * width, 0.42):
        sketch.box(x, 2.5, x + rng.uniform(0.12, 0.3), 2.5 + rng.uniform(0.2, 0.36), light, 5)


def hedge(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Knee-high, along the pavement."""
    flank = 1.0 if item.d > 0 else -1.0
    ends = [item.s + flank * item.size / 2, item.s - flank * item.size / 2]
    near = [street.world(s, item.d) for s in ends]
    sketch = Sketch(item.size, 0.7, 24)
    sketch.box(0, 0, item.size, 0.7, (46, 78, 34))
    _leaves(rng, sketch, (58, 100, 40), [(x, 0.35, 0.6, 0.35) for x in np.arange(0, item.size, 0.5)], 12, 0.09)
    sketch.shade(1, 1, 0.7, 1.1)
    return [wall(near, 0, 0.7, sketch.texture(rng))]


def _leaves(rng: Generator, sketch: Sketch, color: Color, blobs: Points, count: int, size: Number) -> None:
    """Clumps of leaves; each blob x, y, rx, ry is lighter towards its top left."""
    x, y, rx, ry = np.repeat(np.array(blobs).T, count, axis=1)
    angle, radius, glint, leaf = rng.random((4, len(x)))
    u, v = radius**0.5 * np.cos(2 * pi * angle), radius**0.5 * np.sin(2 * pi * angle)
    tones = np.outer((1.0 + 0.3 * v - 0.18 * u) * (0.75 + 0.45 * glint), color)
    sketch.discs(np.stack([x + u * rx, y + v * ry], axis=1), size * (0.6 + 0.7 * leaf), tones)


def tree(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Round, tall or conical; green, darker or turning."""
    width, height = rng.uniform(3.4, 4.8), rng.uniform(5.5, 8.5)
    sketch = Sketch(width, height, 32)
    bark, x = vary(rng, (92, 72, 54)), width / 2
    sketch.polygon([(x - 0.2, 0), (x + 0.2, 0), (x + 0.1, 0.6 * height), (x - 0.1, 0.6 * height)], bark)
    for side in (-1, 1):
        sketch.line([(x, 0.3 * height), (x + side * 0.25 * width, 0.5 * height)], 0.12, bark)
    sketch.shade(1.2, 0.7, 1, 1)
    color = pick(rng, [(70, 116, 44), (58, 98, 50), (96, 128, 46), (52, 92, 40), (150, 120, 48)])
    low, shape = rng.uniform(0.3, 0.38) * height, rng.integers(3)
    blobs = []
    for y in np.linspace(low + 0.6, height - 0.6, 7):
        u = (y - low) / (height - low)
        reach = (width / 2 - 0.5) * [sin(pi * (0.12 + 0.8 * u)), 1.1 - u, 0.65][shape]
        blobs += [(x + rng.uniform(-1, 1) * reach * 0.7, y + rng.uniform(-0.3, 0.3), 0.35 + 0.45 * reach, 0.7) for _ in range(3)]
    _leaves(rng, sketch, dim(color, 0.65), blobs, 9, 0.24)
    _leaves(rng, sketch, dim(color, 0.9), blobs, 13, 0.14)
    _leaves(rng, sketch, dim(color, 1.1), blobs, 16, 0.07)
    return [upright(sketch.texture(rng), width, height)]


# -- street furniture ----------------------------------------------------------------------------------------------


def _pole(sketch: Sketch, x: Number, height: Number, color: Color = (112, 116, 120)) -> None:
    sketch.box(x - 0.05, 0, x + 0.05, height, color)


def streetlight(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """The arm reaches over the road."""
    sketch, color = Sketch(2.2, 6.2, 28), vary(rng, (78, 84, 88))
    sketch.box(0.2, 0, 0.36, 5.6, color)
    sketch.box(0.14, 0, 0.42, 0.9, dim(color, 0.85))
    sketch.line([(0.28, 5.55), (0.6, 5.95), (1.5, 6.05)], 0.12, color)
    sketch.polygon([(1.3, 6.1), (2.1, 6.05), (2.1, 5.9), (1.3, 5.88)], (226, 222, 190))
    texture = sketch.texture(rng)
    texture = texture.mirrored() if item.d > 0 else texture
    return [upright(texture, 2.2, 6.2, -0.8 if item.d > 0 else 0.8)]


def traffic_light(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Parts: pole, light. The variant is the lamp that is lit, from the top."""
    sketch = Sketch(0.6, 3.6, 60)
    _pole(sketch, 0.3, 2.7)
    sketch.box(0.1, 2.5, 0.5, 3.55, (30, 32, 32), 2)
    lamps: list[Color] = [(250, 50, 40), (250, 190, 40), (50, 230, 110)]
    for place, color in enumerate(lamps):
        sketch.ellipse(0.3, 3.35 - 0.33 * place, 0.13, 0.13, color if place == variant else dim(color, 0.25), 2)
    return [upright(sketch.texture(rng), 0.6, 3.6)]


def stop_sign(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Parts: pole, sign."""
    sketch = Sketch(0.9, 2.7, 60)
    _pole(sketch, 0.45, 2.2)
    corners = np.arange(8) * pi / 4 + pi / 8
    for radius, color in ((0.42, (238, 236, 232)), (0.37, (196, 28, 34))):
        points = np.stack([0.45 + radius * np.cos(corners), 2.25 + radius * np.sin(corners)], axis=1)
        sketch.polygon(points.tolist(), color, 2)
    for x in (0.2, 0.34, 0.48, 0.62):
        sketch.box(x, 2.17, x + 0.09, 2.34, (244, 240, 236), 2)
    return [upright(sketch.texture(rng), 0.9, 2.7)]


def sign(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """A round blue one, a warning, or a white board with lines of lettering; parts: pole, sign."""
    sketch = Sketch(0.9, 2.8, 60)
    _pole(sketch, 0.45, 2.2)
    style = rng.integers(3)
    if style == 0:
        sketch.ellipse(0.45, 2.35, 0.36, 0.36, (30, 80, 170), 2)
        sketch.polygon([(0.4, 2.12), (0.5, 2.12), (0.5, 2.4), (0.62, 2.4), (0.45, 2.6), (0.28, 2.4), (0.4, 2.4)], (240, 240, 240), 2)
    elif style == 1:
        sketch.polygon([(0.05, 2.0), (0.85, 2.0), (0.45, 2.72)], (206, 36, 36), 2)
        sketch.polygon([(0.2, 2.09), (0.7, 2.09), (0.45, 2.54)], (242, 238, 220), 2)
    else:
        sketch.box(0.05, 1.9, 0.85, 2.75, (236, 236, 230), 2)
        for y in (2.05, 2.25, 2.45):
            sketch.box(0.15, y, rng.uniform(0.5, 0.75), y + 0.09, (40, 70, 120), 2)
    return [upright(sketch.texture(rng), 0.9, 2.8)]


def ashcan(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """A barrel with two hoops."""
    sketch, color = Sketch(0.6, 1.05, 60), pick(rng, [(52, 84, 62), (66, 68, 72), (196, 108, 36)])
    sketch.polygon([(0.08, 0), (0.52, 0), (0.58, 0.9), (0.02, 0.9)], color)
    sketch.ellipse(0.3, 0.9, 0.28, 0.12, dim(color, 0.55))
    for y in (0.25, 0.6):
        sketch.line([(0.05, y), (0.55, y)], 0.04, dim(color, 0.6))
    sketch.shade(1.3, 0.65, 1, 1)
    return [upright(sketch.texture(rng), 0.6, 1.05)]


def bench(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Along the wall, facing the road: a back, a seat and the legs in front; both ends."""
    wood = vary(rng, (142, 94, 54))
    back, seat, end = Sketch(1.7, 0.5, 40), Sketch(1.7, 0.5, 40), Sketch(0.5, 0.9, 40)
    for sketch in (back, seat):
        for y in (0.02, 0.19, 0.36):
            sketch.box(0, y, 1.7, y + 0.13, wood)
    end.box(0.0, 0.42, 0.5, 0.5, dim(wood, 0.8))
    for x in (0.0, 0.42):
        end.box(x, 0, x + 0.08, 0.9 if x else 0.45, (52, 52, 56))
    ends = end.texture(rng)
    rear, front = 0.25, -0.25
    return [
        Quad(np.array([[0, 0, rear], [0, -0.5, 0.95], [-1.7, 0, 0.85]]), back.texture(rng)),
        Quad(np.array([[0, front - rear, rear], [0, 0, 0.45], [-1.7, 0, 0.85]]), seat.texture(rng)),
        Quad(np.array([[0.5, 0, front], [0, -0.9, 0.9], [0, 0, -0.85]]), ends, lit=False),
        Quad(np.array([[-0.5, 0, rear], [0, -0.9, 0.9], [0, 0, 0.85]]), ends.mirrored(), lit=False),
    ]


def potted_plant(rng: Generator, item: Item, variant: int, street: Street) -> list[Quad]:
    """Leaves over a pot."""
    sketch, clay = Sketch(0.9, 1.3, 60), pick(rng, [(168, 92, 60), (92, 92, 96), (206, 196, 176)])
    color = pick(rng, [(64, 124, 52), (88, 140, 60), (44, 100, 58)])
    _leaves(rng, sketch, color, [(0.45, 0.85, 0.32, 0.32), (0.35, 0.7, 0.25, 0.2), (0.55, 0.72, 0.25, 0.2)], 26, 0.07)
    sketch.polygon([(0.27, 0), (0.63, 0), (0.7, 0.5), (0.2, 0.5)], clay)
    sketch.box(0.17, 0.45, 0.73, 0.53, dim(clay, 1.1))
    return [upright(sketch.texture(rng), 0.9, 1.3)]
