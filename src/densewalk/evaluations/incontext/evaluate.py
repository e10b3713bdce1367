"""In-context segmentation by dense nearest-neighbour retrieval: the Hummingbird protocol.

    densewalk evaluate --spec '{"protocol": "incontext", ...}' --backbone backbone.safetensors --state DIR --out FILE

A memory holds the L2-normalised features m_j of patches of labelled images and the class histogram y_j of each patch's
pixels. A query patch q takes the mixture of its k nearest patches' histograms,

    y(q) = sum_{j in kNN(q)} softmax_j(cos(q, m_j) / temperature) y_j,

which is interpolated to the image's size; the largest entry is the prediction. Nothing is trained. Sources: Hummingbird
(https://arxiv.org/abs/2306.01667, section 3.2), open-hummingbird-eval, NeCo (https://arxiv.org/abs/2408.11054, section 4).
The published mIoU is the *Hungarian-matched* one, although a retrieval predicts classes; both are reported.

docs/deviations.md lists what the released code does otherwise.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.core.progress import track
from densewalk.data.benchmarks.label_maps import Example, load_class_names, read_example, read_image
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result, require_finite
from densewalk.evaluations.common.dense_features import BATCH, resize
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.metrics.segmentation import Confusion, hungarian, iou, mean_iou, pixel_accuracy, reassign
from densewalk.models.feature_cache import Dense
from densewalk.models.loading import load
from densewalk.ops.nearest_neighbors import nearest
from densewalk.visualization.overlays import Row, segmentation_strip

log = logging.getLogger("densewalk")
SHOWN = 4  # queries in the picture


def evaluate(settings: IncontextSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone; a strip of query, ground truth and prediction goes to `job.out`/strip.png.

    Raises:
        UserError: data missing, damaged or with labels beyond the classes; the message names the file.
    """
    settings = settings.resolved()
    memory_set, query_set = splits(settings)
    backbone = load(backbone_path).eval().to(job.device)
    dense = job.cached(backbone.dense, backbone_path)
    views = Views(settings, settings.input_size // backbone.patch * backbone.patch, backbone.patch, job, backbone_path)
    answers = []
    for sample in samples(settings, memory_set):
        # no augmented image is seen twice
        memory = build_memory(views, backbone.dense if settings.augmentation_epochs else dense, sample.examples, sample.seed)
        answers.append(answer(views, dense, memory, query_set))
    names = load_class_names(settings.root, settings.label_set, settings.label_values, settings.class_names)
    segmentation_strip(job.out / "strip.png", answers[0].shown, names, settings.ignored)
    return summary(settings, answers, len(query_set), names, {"input_size": views.size, "memory_images": len(sample.examples)})


def describe_data(settings: IncontextSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    memory, queries = splits(settings)
    dense_features.open_first(memory, queries)
    return {"memory images": len(memory), "query images": len(queries)}


# -- which images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A choice of memory images, and the seed of whatever else is random in that memory."""

    seed: int
    examples: list[Example]


def splits(settings: IncontextSettings) -> tuple[list[Example], list[Example]]:
    """Memory and query images."""
    memory = dense_features.split(settings, "training", settings.memory_list, settings.memory_every)
    return memory, dense_features.split(settings, "validation", settings.query_list, settings.query_every, settings.query_offset)


# the published samples' sizes are no exact fractions
PUBLISHED_COUNTS = {
    ("voc", 10_582): {"1/8": 1_320, "1/64": 160, "1/128": 80},
    ("ade20k", 20_210): {"1/8": 2_550, "1/64": 300, "1/128": 150},
}


def samples(settings: IncontextSettings, examples: Sequence[Example]) -> Iterator[Sample]:
    """The whole set, or one random sample of the wanted share for each of the settings' seeds.

    Raises:
        UserError: `memory_size` is less than one patch of each image.
    """
    seeds = [0] if settings.fraction == "1" else settings.fraction_seeds
    known = PUBLISHED_COUNTS.get((settings.layout, len(examples)), {})
    share = 1 if settings.fraction == "1" else int(settings.fraction.removeprefix("1/"))
    count = known.get(settings.fraction, max(1, round(len(examples) / share)))
    views = count * max(1, settings.augmentation_epochs)
    if settings.memory_size is not None and settings.memory_size < views:
        raise UserError(
            f"memory_size {settings.memory_size} is less than one patch for each of {views} views", todo=f"set at least {views}"
        )
    for seed in seeds:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count]
        yield Sample(seed, list(examples) if share == 1 else [examples[i] for i in sorted(order.tolist())])


# -- the protocol's steps on features --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Patches to retrieve from.

    features: L2-normalised. labels: share of each class among a patch's pixels; sums to less than 1 where some are ignored.
    """

    features: Float[Tensor, "entries dim"]
    labels: Float[Tensor, "entries classes"]


def patch_labels(
    masks: Shaped[Tensor, "batch height width"], patch: int, classes: int, *, ignore: int | None
) -> Float[Tensor, "batch patches classes"]:
    """Class histogram of every patch, by one scatter.

        for pixel in patch:
            if pixel != ignore:
                histogram[pixel] += 1 / patch ** 2

    Args:
        ignore: label that is not counted; None to count all.
    """
    batch, height, width = masks.shape
    rows, columns = height // patch, width // patch
    pixels = masks.long().view(batch, rows, patch, columns, patch).transpose(2, 3).reshape(batch, rows * columns, patch * patch)
    if ignore is not None:
        pixels = torch.where(pixels == ignore, classes, pixels)  # one more bin, cut off below
    counts = torch.zeros(batch, rows * columns, classes + 1, device=masks.device)
    counts.scatter_add_(2, pixels, torch.ones((), device=masks.device).expand_as(pixels))
    return counts[..., :classes] / patch**2


def choose_patches(labels: Float[Tensor, "patches classes"], keep: int, rng: torch.Generator) -> Int[Tensor, " chosen"]:
    """At most `keep` patches of one image, those with classes that are rare in it first; patches without a label never.

        score(p) = U(0, 1) * sum over the classes c in patch p of (number of patches that contain c);    the smallest win

    Source: Hummingbird, appendix; the released code's rule.
    """
    present = (labels > 0).float()
    scores = (present @ present.sum(0)) * torch.rand(len(labels), generator=rng)
    scores[present.sum(1) == 0] = torch.inf
    chosen = scores.topk(min(keep, len(scores)), largest=False).indices
    return chosen[scores[chosen].isfinite()]


def mix_labels(
    memory: Memory, similarity: Float[Tensor, "queries k"], index: Int[Tensor, "queries k"], temperature: float
) -> Float[Tensor, "queries classes"]:
    """The neighbours' histograms, weighted by softmax(cosine / temperature)."""
    weights = (similarity / temperature).softmax(dim=1)
    return F.embedding_bag(index, memory.labels, per_sample_weights=weights, mode="sum")


def predict(mixture: Float[Tensor, "patches classes"], grid: tuple[int, int], size: tuple[int, int]) -> Int[Tensor, "height width"]:
    """The most voted class of every pixel after bilinear interpolation; classes that got no vote are left out before it."""
    voted = mixture.any(0).nonzero()[:, 0]
    # channels last (recognised by its strides, the batch's included) is five times faster here, and so is its argmax
    image = mixture[:, voted].unflatten(0, (1, *grid)).permute(0, 3, 1, 2)
    return voted[F.interpolate(image, size, mode="bilinear")[0].permute(1, 2, 0).argmax(-1)]


def retrieve(
    memory: Memory, features: Float[Tensor, "dim rows columns"], settings: IncontextSettings, size: tuple[int, int]
) -> Int[Tensor, "height width"]:
    """The label map of one image, from its features."""
    queries = F.normalize(features.flatten(1).T, dim=1)
    similarity, index = nearest(memory.features, queries, settings.neighbours)
    rows, columns = features.shape[1:]
    return predict(mix_labels(memory, similarity, index, settings.temperature), (rows, columns), size)


# -- images to features ----------------------------------------------------------------------------------------------


class Views:
    """Images as the backbone gets them: square, normalised, in batches, in memory's or the queries' way."""

    def __init__(self, settings: IncontextSettings, size: int, patch: int, job: Job, backbone: str | Path = "") -> None:
        self.settings, self.size, self.patch, self.job, self.backbone = settings, size, patch, job, backbone

    def features(
        self, dense: Dense, examples: Sequence[Example], label: str, seed: int | None = None
    ) -> Iterator[tuple[Float[Tensor, "dim rows columns"], Integer[Tensor, "height width"], int]]:
        """Features, mask and number of each image; augmented with draws from `seed` if there is one.

        Raises:
            UserError: features are not finite; the message names the image.
        """
        data = Images(self.settings, examples, self.size, seed)
        loader = DataLoader(data, batch_size=BATCH, num_workers=self.job.workers)
        for images, masks, numbers in track(loader, label):
            with torch.inference_mode():
                maps = dense(images.to(self.job.device))
            require_finite(maps, [examples[i] for i in numbers.tolist()], self.backbone)
            yield from zip(maps, masks.to(self.job.device), numbers.tolist(), strict=True)


class Images(Dataset[tuple[Tensor, Tensor, int]]):
    """Normalised image [3, size, size], mask [size, size], number."""

    def __init__(self, settings: IncontextSettings, examples: Sequence[Example], size: int, seed: int | None) -> None:
        self.settings, self.examples, self.size, self.seed = settings, examples, size, seed
        self.std = [*IMAGENET_STD[:2], settings.blue_std]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        image, mask = read_example(self.examples[i])
        labels = torch.from_numpy(mask.astype(np.int32))
        if self.seed is None:
            x, labels = resize(image, labels, self.size)
        else:
            x, labels = augment(image, labels, self.size, derive_seed(self.seed, i))
        return TF.normalize(x, IMAGENET_MEAN, self.std), labels, i


JITTER = T.Compose([T.RandomApply([T.ColorJitter(**{what: 0.1})], p=0.5) for what in ("brightness", "contrast", "saturation", "hue")])


def augment(
    image: Image.Image, mask: Integer[Tensor, "height width"], size: int, seed: int
) -> tuple[Float[Tensor, "3 {size} {size}"], Integer[Tensor, "{size} {size}"]]:
    """Random colours, and one random crop of image and mask; no flip (the released training transform)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = TF.to_tensor(JITTER(image))
        # areas above 1 never fit: half the draws of (0.5, 2) fall back to the largest centred crop of an allowed shape
        box = T.RandomResizedCrop.get_params(x, [0.5, 2.0], [3 / 4, 4 / 3])
    crop = TF.resized_crop(x, *box, [size, size], T.InterpolationMode.BILINEAR, antialias=True)
    return crop, TF.resized_crop(mask[None], *box, [size, size], T.InterpolationMode.NEAREST)[0]


# -- memory and answers ----------------------------------------------------------------------------------------------


def build_memory(views: Views, dense: Dense, examples: Sequence[Example], seed: int) -> Memory:
    """Features and histograms of the memory images, over all augmentation epochs.

    Raises:
        UserError: no pixel of any image is labelled.
    """
    settings = views.settings
    epochs = max(1, settings.augmentation_epochs)
    patches = (views.size // views.patch) ** 2
    keep = patches if settings.memory_size is None else min(patches, settings.memory_size // (len(examples) * epochs))
    store = Store(keep * len(examples) * epochs)
    for epoch in range(epochs):
        epoch_seed = derive_seed(views.job.seed, "incontext", seed, epoch)
        augmented = epoch_seed if settings.augmentation_epochs else None
        for maps, mask, i in views.features(dense, examples, f"memory {epoch + 1}/{epochs}", augmented):
            rng = torch.Generator().manual_seed(derive_seed(epoch_seed, "patches", i))
            store.add(remember(maps, mask, views.patch, settings, keep, rng))
    memory = store.memory()
    if not len(memory.labels):
        raise UserError(f"no pixel of the {len(examples)} memory images in {views.settings.root} is labelled", todo="check `ignore`")
    log.info("memory of %d patches from %d images", len(memory.labels), len(examples))
    return memory


class Store:
    """A memory that is filled in place: joining parts at the end would need twice the space."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.filled = capacity, 0
        self.features = self.labels = torch.empty(0)

    def add(self, part: Memory) -> None:
        """Append a part."""
        if not self.filled:
            self.features = part.features.new_empty(self.capacity, part.features.shape[1])
            self.labels = part.labels.new_empty(self.capacity, part.labels.shape[1])
        end = self.filled + len(part.labels)
        self.features[self.filled : end], self.labels[self.filled : end] = part.features, part.labels
        self.filled = end

    def memory(self) -> Memory:
        """What has been added."""
        return Memory(self.features[: self.filled], self.labels[: self.filled])


def remember(
    maps: Float[Tensor, "dim rows columns"],
    mask: Integer[Tensor, "height width"],
    patch: int,
    settings: IncontextSettings,
    keep: int,
    rng: torch.Generator,
) -> Memory:
    """One image's share of the memory."""
    ignore = settings.ignored
    if settings.remember_ignored and ignore is not None:
        mask, ignore = torch.where(mask == ignore, 0, mask), None
    labels = patch_labels(mask[None], patch, settings.label_values, ignore=ignore)[0]
    chosen = choose_patches(labels.cpu(), keep, rng).sort().values.to(maps.device)
    return Memory(F.normalize(maps.flatten(1).T[chosen], dim=1), labels[chosen])


@dataclass
class Answer:
    """What one memory made of the queries."""

    confusion: Confusion
    entries: int
    shown: list[Row] = field(default_factory=list)


def answer(views: Views, dense: Dense, memory: Memory, queries: Sequence[Example]) -> Answer:
    """Predict every query and count, image by image."""
    settings = views.settings
    result = Answer(Confusion(settings.label_values, ignore=settings.ignored), len(memory.labels))
    shown = {len(queries) * i // SHOWN for i in range(SHOWN)}
    for maps, mask, i in views.features(dense, queries, "queries"):
        prediction = retrieve(memory, maps, settings, (views.size, views.size))
        result.confusion.add(mask, prediction)
        if i in shown:
            image = np.asarray(read_image(queries[i]).resize((views.size, views.size), Image.Resampling.BILINEAR))
            result.shown.append(Row(_title(queries[i]), image, mask.cpu().numpy(), prediction.cpu().numpy()))
    return result


def _title(example: Example) -> str:
    return example.image.stem if example.frame is None else f"{example.image.stem}, frame {example.frame}"


def summary(settings: IncontextSettings, answers: Sequence[Answer], queries: int, names: Sequence[str], facts: dict[str, Any]) -> Result:
    """Metrics in percent, the mean over the memory samples; details hold each, and the IoU of each class.

    Raises:
        UserError: no query pixel is labelled.
    """
    matrices = [a.confusion.matrix for a in answers]
    if not matrices[0].any():
        raise UserError(f"no pixel of the {queries} query images in {settings.root} is labelled", todo="check `ignore`")
    identity = [score(m, settings) for m in matrices]
    matched = [score(reassign(m, hungarian(m)), settings) for m in matrices]
    per_class = torch.stack([iou(m) for m in matrices]).nanmean(0).tolist()
    details = {
        **facts,
        "memory_patches": [a.entries for a in answers],
        "mIoU_per_sample": identity,
        "mIoU_hungarian_per_sample": matched,
        "pixel_accuracy": 100 * sum(pixel_accuracy(m) for m in matrices) / len(matrices),
        "IoU": {name: None if value != value else round(100 * value, 4) for name, value in zip(names, per_class, strict=True)},
    }
    metrics = {"mIoU": sum(identity) / len(identity), "mIoU_hungarian": sum(matched) / len(matched)}
    return Result(metrics=metrics, n=queries, unit="images", details=details)


def score(confusion: Int[Tensor, "classes classes"], settings: IncontextSettings) -> float:
    """mIoU in percent."""
    return 100 * mean_iou(confusion, absent="zero" if settings.count_absent_classes else "skip")
