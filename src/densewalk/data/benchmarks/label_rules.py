"""Meaning of the pixel values in the public segmentation benchmarks' masks. Free of torch."""

from dataclasses import dataclass

IGNORE = 255  # the label of pixels that are not scored, where masks are renumbered


@dataclass(frozen=True)
class LabelRule:
    """Which label each pixel value of a mask becomes.

    pairs: (pixel value, label), by label; several values may have one label. ignored: the value among them that is not scored.
    others: the label of all other values; None makes them an error.
    colors: the value is red + 256 green + 256^2 blue, as in panoptic PNGs.
    """

    pairs: tuple[tuple[int, int], ...]
    ignored: int | None = None
    others: int | None = None
    colors: bool = False

    @property
    def values(self) -> tuple[int, ...]:
        """The pixel values that are scored, by label."""
        return tuple(value for value, _ in self.pairs if value != self.ignored)


def class_rule(values: tuple[int, ...], ignored: int | None = None) -> LabelRule:
    """Number these values from 0 on, and make the ignored one `IGNORE`.

    (1, ..., n) and 0 is mmsegmentation's `reduce_zero_label`.
    """
    scored = tuple((value, label) for label, value in enumerate(v for v in values if v != ignored))
    return LabelRule(scored if ignored is None else (*scored, (ignored, IGNORE)), ignored)


def identity_rule(label_values: int, ignored: int | None) -> LabelRule:
    """Keep values below `label_values`, and the ignored one, as they are."""
    values = [*range(label_values), *([] if ignored is None or ignored < label_values else [ignored])]
    return LabelRule(tuple((value, value) for value in values), ignored)


# one more than the largest label of a mask, and the ignored label; `coco_things_12` and `coco_stuff_15` are COCO's supercategories
LABELS: dict[str, tuple[int, int]] = {
    "ade20k": (151, 0),
    "voc": (21, 255),
    "cityscapes": (19, 255),
    "coco_things_12": (12, 255),
    "coco_stuff_15": (15, 255),
}

# ids of COCO-Stuff's list of 182 that no image has, less one, as in the label maps
_STUFF_GAPS = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
CLASSES = {
    "voc": class_rule(tuple(range(21)), 255),
    "cityscapes": class_rule(tuple(range(19)), 255),
    "coco_stuff": class_rule(tuple(v for v in range(182) if v not in _STUFF_GAPS), 255),
}
# Cityscapes as it is downloaded: the ids of the 19 classes that are scored, in their order
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = LabelRule(tuple((value, label) for label, value in enumerate(_CITYSCAPES_IDS)), others=IGNORE)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in " ".join(text.split()).split(","))


# names of the labels in their order; ADE20K's come with its data
NAMES = {
    "voc": _names("""
    background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
    pottedplant, sheep, sofa, train, tvmonitor"""),
    "cityscapes": _names("""
    road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck,
    bus, train, motorcycle, bicycle"""),
    "coco_things_12": _names("""
    accessory, animal, appliance, electronic, food, furniture, indoor, kitchen, outdoor, person, sports, vehicle"""),
    "coco_stuff_15": _names("""
    building, ceiling, floor, food-stuff, furniture-stuff, ground, plant, raw-material, sky, solid, structural, textile, wall, water,
    window"""),
    "coco_stuff": _names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter,
    bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
    skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
    fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted
    plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
    book, clock, vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet,
    cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
    door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit,
    furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
    net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
    salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent,
    textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
    water-other, waterdrops, window-blind, window-other, wood"""),
}
