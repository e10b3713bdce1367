"""Small generated data sets in ADE20K's and COCO's layouts, and backbone files, for the tests of the toolboxes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from densewalk.backbone import create
from densewalk.checkpoint import export_backbone

COLOURS = {1: (70, 110, 60), 2: (200, 60, 50), 3: (50, 80, 210), 4: (230, 210, 80)}
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def backbone_file(folder: Path, arch: str = "vit_nano_patch16", seed: int = 0) -> Path:
    """Random weights, exported as a run would."""
    path = folder / f"{arch}-{seed}.safetensors"
    export_backbone(create(arch, seed=seed), path, run="test", config_hash="0")
    return path


def scene(
    rng: np.random.Generator, height: int, width: int, objects: int = 3
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """Noisy ground with rectangles that do not overlap: image, labels (1 ground, 2.. objects), and (label, x, y, w, h)."""
    labels, boxes = np.ones((height, width), np.uint8), []
    for k in range(objects):
        left, right = k * width // objects, (k + 1) * width // objects
        w = int(rng.integers((right - left) // 2, right - left - 2))
        h = int(rng.integers(height // 3, height - 4))
        x, y = int(rng.integers(left + 1, right - w)), int(rng.integers(1, height - h))
        label = 2 + int(rng.integers(3))
        labels[y : y + h, x : x + w] = label
        boxes.append((label, (x, y, w, h)))
    image = np.array([COLOURS.get(i, (0, 0, 0)) for i in range(5)])[labels] + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), labels, boxes


def write_ade(
    root: Path,
    *,
    training: int = 4,
    validation: int = 2,
    size: tuple[int, int] = (64, 96),
    objects: int = 3,
    same: bool = False,
    seed: int = 0,
) -> Path:
    """ADEChallengeData2016 with labels 0 (a strip) to 4; `same`: the validation images are the first training images."""
    for split, count in (("training", training), ("validation", validation)):
        rng = np.random.default_rng(seed if same else [seed, len(split)])
        for i in range(count):
            image, labels, _ = scene(rng, *size, objects)
            labels[:3] = 0
            name = f"ADE_{split[:5]}_{i:08d}"
            for kind, array in (("images", image), ("annotations", labels)):
                path = root / "ADEChallengeData2016" / kind / split / (name + (".jpg" if kind == "images" else ".png"))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path, **({"quality": 95} if kind == "images" else {}))
    return root


def write_coco(
    root: Path, *, training: int = 4, validation: int = 2, size: tuple[int, int] = (96, 128), same: bool = False, seed: int = 0
) -> Path:
    """COCO's layout: every rectangle is an object with a polygon."""
    for split, count in (("train2017", training), ("val2017", validation)):
        rng = np.random.default_rng(seed if same else [seed, len(split)])
        content: dict = {"images": [], "annotations": [], "categories": CATEGORIES}
        for i in range(1, count + 1):
            image, _, boxes = scene(rng, *size)
            name = f"{i:012d}.jpg"
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / name, quality=95)
            content["images"].append({"id": i, "file_name": name, "height": size[0], "width": size[1]})
            for label, (x, y, w, h) in boxes:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": i,
                        "category_id": CATEGORIES[label - 2]["id"],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root
