"""k-NN classification with frozen features: DINO's protocol, and DINOv2's.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Every image becomes its CLS token after the final norm, L2-normalized; of a network without one `Network.pooled`. A test image takes the
class with the largest sum of weights among its k nearest training images,

    score(c) = sum_{i in kNN, y_i = c} exp(cos(f, f_i) / temperature),

for k = 10, 20, 100 and 200. Sources: DINO (https://arxiv.org/abs/2104.14294, section 4.2.1, after Wu et al.,
https://arxiv.org/abs/1805.01978), DINOv2 (https://arxiv.org/abs/2304.07193).

One search serves all k: the 200 nearest come in descending order, so the votes of a smaller k are a prefix of those of a larger
one. Memory holds the training features and one block of similarities. The released code cannot split fewer than 100 test images;
here any number is allowed. A k of more than there are training images has no value.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.data.benchmarks.classification import ClassifiedImages, list_imagenet
from densewalk.evaluations.common import image_features
from densewalk.evaluations.common.base import Job, Result, load_network
from densewalk.evaluations.common.image_features import CenterCrops, crop_features, describe_classification, require_multiple
from densewalk.evaluations.common.shares import batches_of, consecutive, in_order, own_batches, rounds
from densewalk.evaluations.common.spread_memory import SpreadMemory, spare_rows, whole_tiles
from densewalk.evaluations.knn.settings import NEIGHBORS, KnnSettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units, image_ids
from densewalk.models.interface import Network

log = logging.getLogger("densewalk")


def evaluate(settings: KnnSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone."""
    training, validation = list_imagenet(settings.root, settings.training, settings.validation)
    ks = possible_neighbors(len(training))
    backbone = load_network(settings, backbone_path, job)
    require_multiple(settings.size, backbone)
    memory = remember(backbone, training, settings, job)
    labels = torch.tensor(training.targets, device=memory.features.device)
    batches = batches_of(len(validation), image_features.BATCH)
    right: dict[int, Bool[Tensor, "ks batch"]] = {}
    queries = features(backbone, validation, settings, job, "k-NN", own_batches(batches))
    nothing = memory.features[:0], labels[:0]
    for number in range(rounds(len(batches))):
        batch, targets = next(queries, nothing)
        similarity, index = memory.nearest(batch, ks[-1])
        found = vote(similarity, labels[index], len(training.names), ks, settings.temperature) == targets
        right[number * distributed.world_size() + distributed.rank()] = found.cpu()
    every = torch.cat(in_order(right), dim=1)
    accuracy = dict(zip(ks, (100 * every.sum(1).double() / len(validation)).tolist(), strict=True))
    of_images = dict(zip(ks, every.double().numpy(), strict=True))
    statistics = {f"top1_k{k}": MeanOfUnits(values, scale=100.0) for k, values in of_images.items()}
    return Result(
        metrics={f"top1_k{k}": accuracy.get(k, math.nan) for k in NEIGHBORS},
        n=len(validation),
        unit="images",
        details={"classes": len(training.names), "training_images": len(training), "validation_images": len(validation)},
        units=Units(image_ids(validation.paths, settings.root), "image", statistics),
    )


def describe_data(settings: KnnSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    return describe_classification(settings.root, settings.training, settings.validation)


def remember(backbone: Network, training: ClassifiedImages, settings: KnnSettings, job: Job) -> SpreadMemory:
    """The features of the training images, spread over the processes."""
    own = consecutive(batches_of(len(training), image_features.BATCH))
    # filled in place: concatenating would need it twice
    table = torch.empty(sum(map(len, own)) + spare_rows(), backbone.pooled_dim, device=job.device)
    filled = 0
    for batch, _ in features(backbone, training, settings, job, "training features", own):
        table[filled : filled + len(batch)] = batch
        filled += len(batch)
    (rows,), start, count = whole_tiles([table], filled)
    return SpreadMemory(rows, start, count)


def possible_neighbors(images: int) -> list[int]:
    """The numbers of neighbors that a training set of this size has."""
    ks = [k for k in NEIGHBORS if k <= images]
    if not ks:
        raise UserError(f"{images} training images are fewer than the smallest number of neighbors, {NEIGHBORS[0]}")
    if len(ks) < len(NEIGHBORS):
        log.warning("%d training images: no value for k = %s", images, ", ".join(map(str, NEIGHBORS[len(ks) :])))
    return ks


def vote(
    similarity: Float[Tensor, "queries neighbors"],
    labels: Int[Tensor, "queries neighbors"],
    classes: int,
    ks: Sequence[int],
    temperature: float,
) -> Int[Tensor, "ks queries"]:
    """The class that the first k neighbors of each query vote for, for every k of the ascending `ks`.

    for q in queries:
        for k in ks:
            score = zeros(classes)
            for i in range(k):
                score[labels[q, i]] += exp((similarity[q, i] - max(similarity[q])) / temperature)
            prediction[k, q] = argmax(score)
    """
    weights = ((similarity - similarity.amax(1, keepdim=True)) / temperature).exp()  # a common factor: the nearest one's vote is 1
    scores = weights.new_zeros(len(weights), classes)
    predictions = []
    for start, stop in pairwise([0, *ks]):
        scores.scatter_add_(1, labels[:, start:stop], weights[:, start:stop])
        predictions.append(scores.argmax(1))
    return torch.stack(predictions)


def features(
    backbone: Network, split: ClassifiedImages, settings: KnnSettings, job: Job, label: str, batches: list[list[int]] | None = None
) -> Iterator[tuple[Float[Tensor, "batch dim"], Int[Tensor, " batch"]]]:
    """L2-normalized CLS tokens and classes, batch by batch; of all images if no batches of their numbers are given."""
    crops = CenterCrops(split, settings.resize, settings.size, backbone.statistics)
    for cls, targets in crop_features(backbone.pooled, crops, job, label, backbone.source, batches):
        yield F.normalize(cls, dim=1), targets
