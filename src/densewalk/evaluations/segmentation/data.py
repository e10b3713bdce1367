"""Images and masks of both splits in any of the layouts, and the names of their classes."""

from pathlib import Path

from densewalk.data.benchmarks import label_maps
from densewalk.data.benchmarks.label_maps import Example
from densewalk.data.benchmarks.label_rules import NAMES
from densewalk.data.benchmarks.paths import require_apart
from densewalk.evaluations.segmentation.recipes import SegmentationSettings
from densewalk.evaluations.segmentation.settings import LayoutData

CHECKED = 200  # masks whose labels are checked before training: all of a small set, evenly spaced ones of a large set


def check_data(settings: SegmentationSettings) -> tuple[list[Example], list[Example]]:
    """The training and validation pairs."""
    splits = settings.splits if isinstance(settings, LayoutData) else ("training", "validation")
    training, validation = (list_split(settings, split) for split in splits)
    require_apart(*([example.image for example in split] for split in (training, validation)))
    for examples in (training, validation):
        for example in examples[:: max(1, len(examples) // CHECKED)]:
            label_maps.read_example(example)
    return training, validation


def list_split(settings: SegmentationSettings, split: str) -> list[Example]:
    """The pairs of one split as their layout lists them; of the files only the headers are read."""
    root, rule = Path(settings.root), settings.rule
    if not isinstance(settings, LayoutData):
        return label_maps.list_ade20k(root, split, rule)
    if settings.layout == "folders":
        images, masks = root / (settings.images or "images") / split, root / (settings.masks or "annotations") / split
        return label_maps.list_folders(images, masks, rule)
    if settings.layout == "voc":
        return label_maps.list_voc(root, split, settings.masks or "SegmentationClass", rule)
    if settings.layout == "cityscapes":
        return label_maps.list_cityscapes(root, split, train_ids=rule)
    return label_maps.list_coco_stuff(root, split, rule)


def class_names(settings: SegmentationSettings) -> list[str]:
    """Names of the classes, in their order; numbers where there are none."""
    layout, given = (settings.layout, settings.class_names) if isinstance(settings, LayoutData) else ("ade20k", None)
    values = settings.rule.values
    names = label_maps.load_class_names(settings.root, layout, max(values) + 1, given)
    if layout in NAMES:
        return names
    return [names[v] if len(names) == max(values) + 1 else f"class {v}" for v in values]
