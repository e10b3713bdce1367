"""A small labelled data set in several layouts, and a tiny backbone."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from densewalk.backbone import create
from densewalk.checkpoint import export_backbone

COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [230, 230, 40]], dtype=np.uint8)


def label_map(i: int, size: int = 32) -> np.ndarray:
    """Quadrants of two of four labels."""
    quadrants = np.array([[i % 4, (i + 1) % 4], [(i + 1) % 4, i % 4]], dtype=np.uint8)
    return quadrants.repeat(size // 2, 0).repeat(size // 2, 1)


def picture(labels: np.ndarray, seed: int) -> Image.Image:
    """The labels' colours with noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*labels.shape, 3))
    return Image.fromarray((COLOURS[labels % 4] + noise).clip(0, 255).astype(np.uint8))


def write_masks(root: Path, count: int = 8) -> None:
    """images/*.png and masks/*.png."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(label_map(i), i).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(label_map(i)).save(root / "masks" / f"{i:03d}.png")


def write_voc(root: Path, training: int = 4, validation: int = 5) -> None:
    """VOC2012 with palette masks and a border of 255."""
    base = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    names = {"trainaug": [f"t{i}" for i in range(training)], "val": [f"v{i}" for i in range(validation)]}
    for name, stems in names.items():
        (base / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(stems) + "\n")
        for i, stem in enumerate(stems):
            labels = label_map(i)
            picture(labels, i).save(base / "JPEGImages" / f"{stem}.jpg")
            labels[15:17] = 255
            mask = Image.fromarray(labels)
            mask.putpalette([*range(255, -1, -1)] * 3)
            mask.save(base / "SegmentationClass" / f"{stem}.png")


def write_panoptic(root: Path, split: str, segments: dict[int, int], categories: list[dict]) -> np.ndarray:
    """One COCO image whose panoptic PNG has the given segments (id -> category) as columns; the ids of the pixels."""
    ids = np.array([*segments, 0], dtype=np.int64).repeat(8)[None].repeat(32, 0)
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"panoptic_{split}").mkdir(parents=True, exist_ok=True)
    picture(np.zeros(ids.shape, np.uint8), 0).save(root / split / "7.jpg")
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(root / "annotations" / f"panoptic_{split}" / "7.png")
    annotation = {"image_id": 7, "file_name": "7.png", "segments_info": [{"id": i, "category_id": c} for i, c in segments.items()]}
    content = {"images": [{"id": 7, "file_name": "7.jpg"}], "annotations": [annotation], "categories": categories}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return ids


def write_backbone(path: Path, seed: int = 0) -> Path:
    """The smallest backbone, with random weights."""
    export_backbone(create("vit_nano_patch16", seed=seed), path, run="r", config_hash="0")
    return path
