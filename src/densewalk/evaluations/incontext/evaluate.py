"""In-context segmentation by dense nearest-neighbor retrieval: the Hummingbird protocol.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

A memory holds the L2-normalized features m_j of patches of labelled images and the class histogram y_j of each patch's
pixels. A query patch q takes the mixture of its k nearest patches' histograms,

    y(q) = sum_{j in kNN(q)} softmax_j(cos(q, m_j) / temperature) y_j,

which is interpolated to the image's size; the largest entry is the prediction. Nothing is trained. Sources: Hummingbird
(https://arxiv.org/abs/2306.01667, section 3.2), open-hummingbird-eval, NeCo (https://arxiv.org/abs/2408.11054, section 4).
The published mIoU is the *Hungarian-matched* one, although a retrieval predicts classes; both are reported.

docs/deviations.md lists what the released code does otherwise.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.imagenet import PixelStatistics
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.dense_features import BATCH, DenseFeatures, list_split
from densewalk.evaluations.common.refinement import refined_labels
from densewalk.evaluations.common.shares import batches_of, consecutive
from densewalk.evaluations.incontext.retrieval import Memory, Store, Told, choose_patches, mix_nearest, patch_labels, retrieve
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.incontext.votes import QUERIES, Ballot, Origins, OriginStore, count_votes, write_ballots
from densewalk.evaluations.metrics.image_counts import ImageCounts
from densewalk.evaluations.metrics.segmentation import hungarian, iou, mean_iou, pixel_accuracy, reassign
from densewalk.evidence.runs import mean_of_runs
from densewalk.evidence.units import image_ids
from densewalk.visualization.overlays import Row

log = logging.getLogger("densewalk")


def evaluate(settings: IncontextSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone; a strip of query, ground truth and prediction goes to `job.out`/strip.png."""
    settings = settings.resolved()
    memory_set, query_set = list_splits(settings)
    backbone, features = dense_features.load_features(settings, settings.input_size, backbone_path, job)
    plain = partial(prepare, settings=settings, size=features.size, statistics=features.statistics, seed=None)
    features = dense_features.choose_features(settings, backbone, features, memory_set, plain)
    found: list[Any] = []
    for seed, examples in sample_memory(settings, memory_set):
        first = not found  # whose votes are kept
        origins = OriginStore() if first else None
        memory = build_memory(settings, features, examples, backbone.stride, seed, origins)
        voting = Voting(origins.origins(), settings, backbone.stride) if origins else None
        found.append((memory.spread.count, *score_queries(settings, features, memory, query_set, voting)))
        if voting is not None:
            write_votes(settings, features, voting, (seed, examples), query_set)
    sizes, counts, rows = (list(column) for column in zip(*found, strict=True))
    dense_features.require_labelled(settings, bool(counts[0].count.any()), len(query_set), "query")
    dense_features.write_strip(settings, job, rows[0])
    facts = {"input_size": features.size, "memory_images": len(examples), "memory_patches": sizes}
    return summarize(settings, counts, query_set, facts)


def describe_data(settings: IncontextSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    memory, queries = list_splits(settings)
    return dense_features.describe_splits({"memory images": memory, "query images": queries})


def list_splits(settings: IncontextSettings) -> tuple[list[Example], list[Example]]:
    """Memory and query images."""
    memory = list_split(settings, "training", settings.memory_list, settings.memory_every)
    return memory, list_split(settings, "validation", settings.query_list, settings.query_every, settings.query_offset)


# the published samples' sizes are no exact fractions
PUBLISHED_COUNTS = {
    ("voc", 10_582): {"1/8": 1_320, "1/64": 160, "1/128": 80},
    ("ade20k", 20_210): {"1/8": 2_550, "1/64": 300, "1/128": 150},
}


def sample_memory(settings: IncontextSettings, examples: Sequence[Example]) -> Iterator[tuple[int, list[Example]]]:
    """Seed and images of each memory: all images, or one random sample of the wanted fraction for each of the settings' seeds."""
    whole = settings.fraction == "1"
    known = PUBLISHED_COUNTS.get((settings.layout, len(examples)), {})
    share = 1 if whole else int(settings.fraction.removeprefix("1/"))
    count = known.get(settings.fraction, max(1, round(len(examples) / share)))
    views = count * max(1, settings.augmentation_epochs)
    if settings.memory_size is not None and settings.memory_size < views:
        raise UserError(
            f"memory_size {settings.memory_size} is less than one patch for each of {views} views", todo=f"set at least {views}"
        )
    for seed in [0] if whole else settings.fraction_seeds:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count]
        yield seed, list(examples) if whole else [examples[i] for i in sorted(order.tolist())]


def build_memory(
    settings: IncontextSettings,
    features: DenseFeatures,
    examples: Sequence[Example],
    patch: int,
    seed: int,
    origins: OriginStore | None = None,
) -> Memory:
    """Features and histograms of the memory images, over all augmentation epochs. origins: is told where each patch comes from."""
    images, epochs, patches = len(examples), max(1, settings.augmentation_epochs), (features.size // patch) ** 2
    keep = patches if settings.memory_size is None else min(patches, settings.memory_size // (images * epochs))
    own = consecutive([(epoch, batch) for epoch in range(epochs) for batch in batches_of(images, BATCH)])
    store = Store(keep * sum(len(batch) for _, batch in own), features.job.device)
    for epoch in sorted({epoch for epoch, _ in own}):
        batches = [batch for other, batch in own if other == epoch]
        epoch_seed = seed_of_epoch(features.job.seed, seed, epoch)
        drawn = epoch_seed if settings.augmentation_epochs else None
        transform = partial(prepare, settings=settings, size=features.size, statistics=features.statistics, seed=drawn)
        for maps, mask, i in features.maps(examples, f"memory {epoch + 1}/{epochs}", transform, batches):
            generator = torch.Generator().manual_seed(derive_seed(epoch_seed, "patches", i))
            part = remember(maps, mask, patch, settings, keep, generator)
            store.add(part)
            if origins is not None and part.patches is not None:
                origins.add(epoch * images + i, part.patches, part.labels)
    memory = store.memory()
    dense_features.require_labelled(settings, memory.spread.count > 0, images, "memory")
    log.info("memory of %d patches from %d images", memory.spread.count, images)
    return memory


def seed_of_epoch(job_seed: int, memory_seed: int, epoch: int) -> int:
    """Seed of a pass over the memory images: of their augmentation, and of the choice of patches."""
    return derive_seed(job_seed, "incontext", memory_seed, epoch)


def remember(
    maps: Float[Tensor, "dim rows columns"],
    mask: Integer[Tensor, "height width"],
    patch: int,
    settings: IncontextSettings,
    keep: int,
    generator: torch.Generator,
) -> Memory:
    """The patches of one image that are kept."""
    ignore = settings.ignored
    if settings.remember_ignored and ignore is not None:
        mask, ignore = torch.where(mask == ignore, 0, mask), None
    labels = patch_labels(mask[None], patch, settings.label_values, ignore=ignore)[0]
    chosen = choose_patches(labels.cpu(), keep, generator).sort().values.to(maps.device)
    return Memory(F.normalize(maps.flatten(1).T[chosen], dim=1), labels[chosen], patches=chosen)


def prepare(
    image: Image.Image, mask: Tensor, number: int, *, settings: IncontextSettings, size: int, statistics: PixelStatistics, seed: int | None
) -> tuple[Tensor, Tensor]:
    """Resized or, with a seed, augmented; the image normalized."""
    assert settings.blue_std is not None  # set by `resolved`
    x, labels = dense_features.resize(image, mask, size) if seed is None else augment(image, mask, size, derive_seed(seed, number))
    mean, std = statistics.with_imagenet_std(2, settings.blue_std)
    return TF.normalize(x, list(mean), list(std)), labels


JITTER = T.Compose([T.RandomApply([T.ColorJitter(**{what: 0.1})], p=0.5) for what in ("brightness", "contrast", "saturation", "hue")])


def augment(
    image: Image.Image, mask: Integer[Tensor, "height width"], size: int, seed: int
) -> tuple[Float[Tensor, "3 {size} {size}"], Integer[Tensor, "{size} {size}"]]:
    """Random colors, and one random crop of image and mask; no flip (the released training transform)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = TF.to_tensor(JITTER(image))
        # areas above 1 never fit: half the draws of (0.5, 2) fall back to the largest centered crop of an allowed shape
        box = T.RandomResizedCrop.get_params(x, [0.5, 2.0], [3 / 4, 4 / 3])
    crop = TF.resized_crop(x, *box, [size, size], T.InterpolationMode.BILINEAR, antialias=True)
    return crop, TF.resized_crop(mask[None], *box, [size, size], T.InterpolationMode.NEAREST)[0]


class Voting:
    """Counts the votes for some queries while they are scored."""

    def __init__(self, origins: Origins, settings: IncontextSettings, patch: int) -> None:
        self.origins, self.settings, self.patch = origins, settings, patch
        self.found: dict[int, Ballot] = {}

    def of(self, number: int, mask: Integer[Tensor, "height width"]) -> Told:
        """What is to be told of a query."""
        s = self.settings

        def tell(similarity: Tensor, index: Tensor, labels: Tensor, mixture: Tensor) -> None:
            truth = patch_labels(mask[None], self.patch, s.label_values, ignore=s.ignored)[0]
            weights = (similarity / s.temperature).softmax(dim=1)
            self.found[number] = count_votes(self.origins, weights, index, labels, mixture, truth)

        return tell


def write_votes(
    settings: IncontextSettings,
    features: DenseFeatures,
    voting: Voting,
    memory: tuple[int, Sequence[Example]],
    queries: Sequence[Example],
) -> None:
    """Write `job.out`/votes.json: who voted for the patches of some queries. memory: its seed and images."""
    seed, examples = memory
    root, size = settings.root, features.size

    def names(of: Sequence[Example]) -> Callable[[int], str]:
        return lambda number: name_of(of[number % len(of)], root)

    def query(i: int) -> Image.Image:
        return TF.to_pil_image(dense_features.resize(*dense_features.read_pair(queries[i]), size)[0])

    def view(number: int) -> Image.Image:
        epoch, i = divmod(number, len(examples))
        pair = dense_features.read_pair(examples[i])
        if not settings.augmentation_epochs:
            return TF.to_pil_image(dense_features.resize(*pair, size)[0])
        return TF.to_pil_image(augment(*pair, size, derive_seed(seed_of_epoch(features.job.seed, seed, epoch), i))[0])

    side = size // voting.patch
    write_ballots(
        features.job.out / "votes.json",
        voting.found,
        (names(queries), query),
        (names(examples), view),
        (side, side),
        dense_features.label_names(settings),
    )


def name_of(example: Example, root: str) -> str:
    """An example's path below the root, and its frame."""
    return image_ids([example.image], root)[0] + ("" if example.frame is None else f", frame {example.frame}")


def score_queries(
    settings: IncontextSettings, features: DenseFeatures, memory: Memory, queries: Sequence[Example], voting: Voting | None = None
) -> tuple[ImageCounts, list[Row]]:
    """Confusion matrices of all queries' predictions, and rows for the strip."""
    voted = dense_features.shown_numbers(len(queries))[:QUERIES]

    def predict(maps: Tensor, mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
        tell = voting.of(number, mask) if voting is not None and number in voted else None
        refined = partial(refined_labels, settings, example=queries[number]) if settings.refine else None
        return mask, retrieve(memory, maps, settings, (features.size, features.size), tell, refined)

    def help_others() -> None:
        mix_nearest(memory, memory.features[:0], settings)

    transform = partial(prepare, settings=settings, size=features.size, statistics=features.statistics, seed=None)
    return dense_features.score_predictions(features, queries, predict, "queries", transform, idle=help_others)


def summarize(settings: IncontextSettings, counts: Sequence[ImageCounts], queries: Sequence[Example], facts: dict[str, Any]) -> Result:
    """Metrics in percent, the mean over the memory samples; details hold each, and the IoU of each class."""
    matrices = [c.matrix for c in counts]
    identity = [score(m, settings) for m in matrices]
    matched = [score(reassign(m, hungarian(m)), settings) for m in matrices]
    details = {
        **facts,
        "mIoU_per_sample": identity,
        "mIoU_hungarian_per_sample": matched,
        "pixel_accuracy": 100 * sum(pixel_accuracy(m) for m in matrices) / len(matrices),
        **dense_features.iou_details(settings, torch.stack([iou(m) for m in matrices]).nanmean(0)),
    }
    metrics = {"mIoU": sum(identity) / len(identity), "mIoU_hungarian": sum(matched) / len(matched)}
    absent = absent_classes(settings)
    statistics = {
        "mIoU": mean_of_runs([c.mean_iou(absent) for c in counts]),
        "mIoU_hungarian": mean_of_runs([c.matched_iou(matching="hungarian", absent=absent) for c in counts]),
    }
    units = dense_features.image_units(settings, queries, statistics)
    return Result(metrics=metrics, n=len(queries), unit="images", details=details, units=units)


def score(confusion: Int[Tensor, "classes classes"], settings: IncontextSettings) -> float:
    """mIoU in percent."""
    return 100 * mean_iou(confusion, absent=absent_classes(settings))


def absent_classes(settings: IncontextSettings) -> Literal["skip", "zero"]:
    """How classes count that are neither there nor predicted."""
    return "zero" if settings.count_absent_classes else "skip"
