"""Labelled images as a frozen backbone gets them: square, normalised, in batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from densewalk.core.errors import UserError
from densewalk.core.progress import track
from densewalk.data.benchmarks.label_maps import (
    Example,
    list_ade20k,
    list_cityscapes,
    list_coco_panoptic,
    list_folders,
    list_video,
    list_voc,
    load_class_names,
    read_example,
    read_image,
    read_labels,
)
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, require_finite
from densewalk.evaluations.common.label_map_settings import BatchedValidationSettings, LabelledSettings, ValidationSettings
from densewalk.models.feature_cache import Dense
from densewalk.visualization.overlays import Row, segmentation_strip

BATCH = 8  # images per forward pass
SHOWN = 4  # images in the picture


class SquareImages(Dataset[tuple[Tensor, Tensor, int]]):
    """Normalised image [3, size, size], mask [size, size], number."""

    def __init__(self, examples: Sequence[Example], size: int) -> None:
        self.examples, self.size = examples, size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        image, mask = read_example(self.examples[i])
        x, labels = resize(image, torch.from_numpy(mask.astype(np.int32)), self.size)
        return normalize(x), labels, i


def resize(
    image: Image.Image, mask: Integer[Tensor, "height width"], size: int
) -> tuple[Float[Tensor, "3 {size} {size}"], Integer[Tensor, "{size} {size}"]]:
    """Image (bilinear) and mask (nearest), squeezed to a square."""
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return TF.to_tensor(square), TF.resize(mask[None], [size, size], T.InterpolationMode.NEAREST)[0]


def reduced(masks: Integer[Tensor, "batch height width"], size: int) -> Integer[Tensor, "batch {size} {size}"]:
    """Masks of `size` x `size`: the label of the pixel floor(i * height / size), floor(j * width / size)."""
    return F.interpolate(masks[:, None].float(), (size, size), mode="nearest")[:, 0].to(masks.dtype)


def validation_maps(
    settings: ValidationSettings, dense: Dense, backbone: str | Path, examples: Sequence[Example], size: int, job: Job, label: str
) -> Iterator[tuple[Float[Tensor, "dim rows columns"], Integer[Tensor, "size size"], int]]:
    """Features, mask and number of each image.

    Args:
        backbone: file that `dense` is of.

    Raises:
        UserError: an image or mask is bad, or features are not finite; the message names the file.
    """
    loader = DataLoader(SquareImages(examples, size), batch_size=BATCH, num_workers=job.workers)
    for images, masks, numbers in track(loader, label):
        with torch.inference_mode():
            maps = dense(images.to(job.device))
        require_finite(maps, [examples[i] for i in numbers.tolist()], backbone)
        yield from zip(maps, masks.to(job.device), numbers.tolist(), strict=True)


def whole_batches(settings: BatchedValidationSettings, examples: list[Example], batch: int) -> list[Example]:
    """The images to score: all, or with `drop_incomplete_batch` and layout `voc` those that fill batches.

    Raises:
        UserError: nothing is left.
    """
    if not settings.resolved().drop_incomplete_batch or settings.layout != "voc":
        return examples
    kept = len(examples) // batch * batch
    if not kept:
        raise UserError(
            f"{len(examples)} images fill no batch of {batch}, and compat `released` drops what fills none",
            todo="set compat: paper, or drop_incomplete_batch: false",
        )
    return examples[:kept]


def row(example: Example, target: Integer[Tensor, "h w"], prediction: Integer[Tensor, "h w"]) -> Row:
    """One line of the picture."""
    height, width = target.shape
    image = read_image(example).resize((width, height), Image.Resampling.BILINEAR)
    title = example.image.stem if example.frame is None else f"{example.image.stem}, frame {example.frame}"
    return Row(title, np.asarray(image), target.cpu().numpy(), prediction.cpu().numpy())


def draw(
    settings: ValidationSettings,
    job: Job,
    examples: Sequence[Example],
    masks: Integer[Tensor, "images mask mask"],
    matched: Int[Tensor, "images mask mask"],
) -> None:
    """`strip.png`: some images, their labels, and the classes that their clusters have taken."""
    names = load_class_names(settings.root, settings.label_set, settings.label_values, settings.class_names)
    shown = sorted({len(examples) * i // SHOWN for i in range(SHOWN)})
    segmentation_strip(job.out / "strip.png", [row(examples[i], masks[i], matched[i]) for i in shown], names, settings.ignored)


def split(settings: LabelledSettings, name: Literal["training", "validation"], list_name: str, every: int, first: int = 0) -> list[Example]:
    """The labelled images of one side. Layout `voc`: those of `list_name`; `masks` and `video`: every n-th from `first` on.

    Raises:
        UserError: a file is missing, or the images leave none for this side.
    """
    root, rule, short = Path(settings.root), settings.rule, {"training": "train", "validation": "val"}[name]
    match settings.label_set:
        case "ade20k":
            return list_ade20k(root, name, rule)
        case "voc":
            return list_voc(root, list_name, settings.masks or "SegmentationClass", rule)
        case "cityscapes":
            return list_cityscapes(root, short)
        case "coco_things_12":
            return list_coco_panoptic(root, f"{short}2017", "coco_things_12")
        case "coco_stuff_15":
            return list_coco_panoptic(root, f"{short}2017", "coco_stuff_15")
    assert settings.images is not None
    assert settings.masks is not None
    list_examples = list_video if settings.layout == "video" else list_folders
    examples = list_examples(root / settings.images, root / settings.masks, rule)
    for example in examples:
        read_labels(example.mask, rule)
    if first >= len(examples):
        raise UserError(f"{len(examples)} labelled images in {root} leave none for {name}", todo=f"lower the offset {first}")
    return examples[first::every]


def open_first(*splits: Sequence[Example]) -> None:
    """Read the first labelled image of each split, for its faults to show."""
    for examples in splits:
        read_example(examples[0])
