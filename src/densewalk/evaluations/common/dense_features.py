"""Labelled images as a frozen backbone takes them: square, normalized, in batches; and the strips of their label maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import track
from densewalk.data.benchmarks import label_maps
from densewalk.data.benchmarks.label_maps import Example
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, fit_size, load_network, require_finite
from densewalk.evaluations.common.label_map_settings import (
    BatchedValidationSettings,
    FeatureSettings,
    LabelledSettings,
    ScoredSettings,
)
from densewalk.evaluations.common.shares import batches_of, in_order, own_batches
from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evidence.statistics import Statistic
from densewalk.evidence.units import Units, image_ids
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network
from densewalk.ops.position import PlaceSums, fixed_code, without_mean
from densewalk.visualization.overlays import Row, write_segmentation_strip

BATCH = 8  # images per forward pass
SHOWN = 4  # images in `strip.png`
POSITION_IMAGES = 1000  # that the mean feature at each place is of, at most
# image, mask [height, width] and number of an example -> normalized image [3, size, size], mask [size, size]
Transform = Callable[[Image.Image, Tensor, int], tuple[Tensor, Tensor]]
Described = tuple[Float[Tensor, "dim rows columns"], Integer[Tensor, "size size"], int]  # features, mask and number of an example


def list_split(
    settings: LabelledSettings, split: Literal["training", "validation"], list_name: str, every: int, first: int = 0
) -> list[Example]:
    """The labelled images of one split. Layout `voc`: those of `list_name`; `masks` and `video`: every n-th from `first` on."""
    root, rule, short = Path(settings.root), settings.rule, {"training": "train", "validation": "val"}[split]
    match settings.label_set:
        case "ade20k":
            return label_maps.list_ade20k(root, split, rule)
        case "voc":
            return label_maps.list_voc(root, list_name, settings.masks or "SegmentationClass", rule)
        case "cityscapes":
            return label_maps.list_cityscapes(root, short)
        case "coco_things_12" | "coco_stuff_15" as labels:
            return label_maps.list_coco_panoptic(root, f"{short}2017", labels)
    assert settings.images is not None
    assert settings.masks is not None
    list_examples = label_maps.list_video if settings.layout == "video" else label_maps.list_folders
    examples = list_examples(root / settings.images, root / settings.masks, rule)
    for example in examples:
        label_maps.read_labels(example.mask, rule, example.still)
    if first >= len(examples):
        raise UserError(f"{len(examples)} labelled images in {root} leave none for {split}", todo=f"lower the offset {first}")
    return examples[first::every]


def list_validation(settings: ScoredSettings) -> list[Example]:
    """The images that are scored."""
    return list_split(settings, "validation", settings.val_list, settings.val_every, settings.val_offset)


def whole_batches(settings: BatchedValidationSettings, examples: list[Example], batch: int) -> list[Example]:
    """The examples; with `drop_incomplete_batch` and layout `voc` without the last incomplete batch."""
    if not settings.resolved().drop_incomplete_batch or settings.layout != "voc":
        return examples
    kept = len(examples) // batch * batch
    if not kept:
        raise UserError(
            f"{len(examples)} images fill no batch of {batch}, and compat `released` drops what fills none",
            todo="set compat: paper, or drop_incomplete_batch: false",
        )
    return examples[:kept]


def describe_splits(splits: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    """Count the images of each split, and read the first one."""
    for examples in splits.values():
        if examples:
            label_maps.read_example(examples[0])
    return {name: len(examples) for name, examples in splits.items()}


def read_pair(example: Example) -> tuple[Image.Image, Integer[Tensor, "height width"]]:
    """An image and its mask; a bad file or label is a UserError that names the file."""
    image, mask = label_maps.read_example(example)
    return image, torch.from_numpy(mask.astype(np.int32))


def require_labelled(settings: LabelledSettings, labelled_pixels: bool, images: int, split: str) -> None:
    """Refuse a split without any labelled pixel."""
    if not labelled_pixels:
        raise UserError(f"no pixel of the {images} {split} images in {settings.root} is labelled", todo="check `ignore`")


class SquareImages(Dataset[tuple[Tensor, Tensor, int]]):
    """Normalized image [3, size, size], mask [size, size] and number of each example."""

    def __init__(self, examples: Sequence[Example], transform: Transform) -> None:
        self.examples, self.transform = examples, transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return *self.transform(*read_pair(self.examples[i]), i), i


@dataclass(frozen=True)
class DenseFeatures:
    """Patch features of square labelled images.

    compute: the features of a batch. backbone: the file that they are of. size: side of the images in pixels. dim: their channels.
    kind: name of the features in the cache if they are not `Network.dense`; None keeps none there. statistics: what images are normalized
    with. change: what is made of the features before they are used, which is not cached.
    """

    settings: LabelledSettings
    compute: Dense
    backbone: Path
    size: int
    statistics: PixelStatistics
    job: Job
    dim: int
    kind: str | None = ""
    change: Dense | None = None

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """The features of a batch, changed; not from the cache."""
        return self.changed(self.compute(images))

    def changed(self, maps: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch dim rows columns"]:
        """What is made of the features."""
        return maps if self.change is None else self.change(maps)

    def batches(
        self, examples: Sequence[Example], label: str, transform: Transform | None = None, batches: list[list[int]] | None = None
    ) -> Iterator[list[Described]]:
        """Features, masks and numbers of the examples of each batch.

        Args:
            label: for the progress, beginning with the split: `queries`, `validation 1/2`.
            batches: of the numbers of examples; those of all examples that are this process's if None.
        """
        compute = self.compute if self.kind is None else self.job.cached(self.compute, self.backbone, label.split()[0], self.kind)
        own = own_batches(batches_of(len(examples), BATCH)) if batches is None else batches
        data = SquareImages(examples, transform or partial(resize_and_normalize, size=self.size, statistics=self.statistics))
        for images, masks, numbers in track(DataLoader(data, batch_sampler=own, num_workers=self.job.workers), label):
            with torch.inference_mode():
                maps = compute(images.to(self.job.device))
            require_finite(maps, [examples[i] for i in numbers.tolist()], self.backbone)
            yield list(zip(self.changed(maps), masks.to(self.job.device), numbers.tolist(), strict=True))

    def maps(
        self, examples: Sequence[Example], label: str, transform: Transform | None = None, batches: list[list[int]] | None = None
    ) -> Iterator[Described]:
        """The same, one by one."""
        for batch in self.batches(examples, label, transform, batches):
            yield from batch


def load_features(settings: LabelledSettings, input_size: int, backbone_path: Path, job: Job) -> tuple[Network, DenseFeatures]:
    """A frozen backbone, and its features of images of `input_size`, rounded down to whole patches."""
    backbone = load_network(settings, backbone_path, job).requires_grad_(False)
    size = fit_size(input_size, backbone)
    return backbone, DenseFeatures(settings, backbone.dense, backbone_path, size, backbone.statistics, job, backbone.dim)


def choose_features(
    settings: FeatureSettings, network: Network, features: DenseFeatures, training: Sequence[Example], transform: Transform | None = None
) -> DenseFeatures:
    """The features that `settings.features` names; every process computes the mean of the same images, to the last bit.

    Args:
        training: the images that the mean feature at each place is of. transform: of images that are not augmented.
    """
    if settings.features == "all":
        return features
    if settings.features == "position_code":
        place = fixed_code(features.size // network.stride, features.size // network.stride)
    else:
        count = min(len(training), POSITION_IMAGES)
        chosen = [training[len(training) * i // count] for i in range(count)]
        sums = PlaceSums()
        for batch in features.batches(chosen, "position", transform, batches_of(len(chosen), BATCH)):
            sums.add(torch.stack([maps for maps, _, _ in batch]))
        place = sums.mean.float()
    place = place.to(features.job.device)
    if settings.features == "without_position":
        return replace(features, change=partial(without_mean, mean=place))
    return replace(features, compute=lambda images: place.expand(len(images), -1, -1, -1), dim=len(place), kind=None)


def resize_and_normalize(
    image: Image.Image, mask: Tensor, _number: int, *, size: int, statistics: PixelStatistics
) -> tuple[Tensor, Tensor]:
    """The validation transform."""
    x, labels = resize(image, mask, size)
    return normalize(x, statistics), labels


def resize(
    image: Image.Image, mask: Integer[Tensor, "height width"], size: int
) -> tuple[Float[Tensor, "3 {size} {size}"], Integer[Tensor, "{size} {size}"]]:
    """Image (bilinear) and mask (nearest), squeezed to a square."""
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return TF.to_tensor(square), TF.resize(mask[None], [size, size], T.InterpolationMode.NEAREST)[0]


def reduce_masks(masks: Integer[Tensor, "batch height width"], size: int) -> Integer[Tensor, "batch {size} {size}"]:
    """Masks of `size` x `size`: the label of the pixel floor(i * height / size), floor(j * width / size)."""
    return F.interpolate(masks[:, None].float(), (size, size), mode="nearest")[:, 0].to(masks.dtype)


def score_predictions(
    features: DenseFeatures,
    examples: Sequence[Example],
    predict: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    label: str,
    transform: Transform | None = None,
    idle: Callable[[], None] = lambda: None,
) -> tuple[ImageCounts, list[Row]]:
    """Confusion matrices of all examples, and rows for the strip; the processes share the examples.

    Args:
        predict: target and prediction, given features, mask and number of an example.
        idle: called in its place in a process that has fewer examples than another.
    """
    classes, ignored = features.settings.label_values, features.settings.ignored
    found, rows, shown = {}, {}, shown_numbers(len(examples))
    left = max(distributed.all_objects(sum(map(len, own_batches(batches_of(len(examples), BATCH))))))
    for maps, mask, i in features.maps(examples, label, transform):
        target, prediction = predict(maps, mask, i)
        found[i] = counted(target, prediction, classes, classes, ignore=ignored)
        left -= 1
        if i in shown:
            rows[i] = strip_row(examples[i], target, prediction)
    for _ in range(left):
        idle()
    return ImageCounts.of(in_order(found), classes, classes), in_order(rows)


def image_units(settings: LabelledSettings, examples: Sequence[Example], statistics: Mapping[str, Statistic]) -> Units:
    """What scores of these images are made of; frames of a video are one cluster."""
    names = [e.image if e.frame is None else e.image / f"{e.frame:05d}" for e in examples]
    videos = image_ids([e.image for e in examples], settings.root) if any(e.frame is not None for e in examples) else []
    clusters = [name.split(" (")[0] for name in videos]
    return Units(image_ids(names, settings.root), "image", statistics, clusters, "video" if clusters else None)


def label_names(settings: LabelledSettings) -> list[str]:
    """Names of the labels for readers: given, known, of classes.txt in the folder of masks, or numbers."""
    beside = None
    if settings.class_names is None and settings.layout in ("masks", "video"):
        beside = label_maps.names_beside_masks(f"{settings.root}/{settings.masks}", settings.label_values)
    return beside or _label_keys(settings)


def _label_keys(settings: LabelledSettings) -> list[str]:
    """How records name the labels: a file beside the masks changes nothing in them."""
    return label_maps.load_class_names(settings.root, settings.label_set, settings.label_values, settings.class_names)


def iou_details(settings: LabelledSettings, values: Float[Tensor, " classes"]) -> dict[str, dict[str, Any]]:
    """IoU of each class in percent, None where it is neither there nor predicted; and names for readers where these are others."""
    keys, names = _label_keys(settings), label_names(settings)
    pairs = zip(keys, values.tolist(), strict=True)
    found: dict[str, dict[str, Any]] = {"IoU": {key: None if value != value else round(100 * value, 4) for key, value in pairs}}
    return found if names == keys else {**found, "class_names": dict(zip(keys, names, strict=True))}


def shown_numbers(count: int) -> list[int]:
    """Numbers of the images in `strip.png`, spread over all `count`."""
    return sorted({count * i // SHOWN for i in range(SHOWN)})


def strip_row(example: Example, target: Integer[Tensor, "h w"], prediction: Integer[Tensor, "h w"]) -> Row:
    """One line of `strip.png`."""
    height, width = target.shape
    image = label_maps.read_image(example).resize((width, height), Image.Resampling.BILINEAR)
    title = example.image.stem if example.frame is None else f"{example.image.stem}, frame {example.frame}"
    return Row(title, np.asarray(image), target.cpu().numpy(), prediction.cpu().numpy())


def write_strip(settings: LabelledSettings, job: Job, rows: Sequence[Row]) -> None:
    """Write `strip.png`: some images, their labels, and the predicted labels; process 0 does."""
    if distributed.rank() > 0:
        return
    write_segmentation_strip(job.out / "strip.png", rows, label_names(settings), settings.ignored)
