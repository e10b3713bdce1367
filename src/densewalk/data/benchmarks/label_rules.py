"""What the pixels of the public segmentation benchmarks' masks mean: the one place where label rules stand. Free of torch."""

from dataclasses import dataclass
from typing import Literal

Layout = Literal["ade20k", "voc", "cityscapes", "coco_things", "coco_stuff", "masks", "video"]
# label values of a mask, the ignored one among or beside them
KNOWN: dict[str, tuple[int, int]] = {
    "ade20k": (151, 0),
    "voc": (21, 255),
    "cityscapes": (19, 255),
    "coco_things": (12, 255),
    "coco_stuff": (15, 255),
}


@dataclass(frozen=True)
class LabelRule:
    """Which pixel values are classes, in class order, and which one is not scored; any other value is an error.

    mmsegmentation's `reduce_zero_label` is the rule whose `ignored` is 0 and whose values begin with 1.
    """

    values: tuple[int, ...]
    ignored: int | None = None

    @property
    def label_values(self) -> int:
        """One more than the largest class value."""
        return max(self.values) + 1


def counted(label_values: int, ignored: int | None) -> LabelRule:
    """Values from 0 on, all of them classes but for the ignored one."""
    return LabelRule(tuple(v for v in range(label_values) if v != ignored), ignored)


# ids of COCO-Stuff's list of 182 that no image has, less one, as in the label maps
_STUFF_GAPS = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
RULES = {
    "voc": counted(*KNOWN["voc"]),
    "cityscapes": counted(19, 255),
    "coco_stuff": LabelRule(tuple(v for v in range(182) if v not in _STUFF_GAPS), 255),
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in " ".join(text.split()).split(","))


# names of the classes in the order of their rule; ADE20K's come with its data, VOC's are in `densewalk.labelled`
NAMES = {
    "cityscapes": _names("""
    road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck,
    bus, train, motorcycle, bicycle"""),
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
