"""Fully unsupervised segmentation: foreground by attention, objects as communities of parts that occur together.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Features of all patches are standardized, projected on 50 principal components and clustered by spherical k-means. The foreground are
the clusters on which enough of the CLS token's attention lies (foreground.py). Training and validation images are clustered
separately; the threshold is taken over. `mIoU_cbfe` is the score of the foreground's k-means with as many clusters as foreground
classes, the background being one cluster more. For `mIoU` its k-means clusters are joined to communities (communities.py).

All matchings are the Hungarian one on masks of 100 x 100 by nearest neighbor; what it leaves over is background. Scores are means
over runs with seeds of their own. Sources: Leopart (https://arxiv.org/abs/2204.13101, section 3.3) and NeCo
(https://arxiv.org/abs/2408.11054, section 4, table 1b).

    job.out/strip.png           image, ground truth and matched communities of some images, of the first run

Not the published protocol (docs/deviations.md), so that no published value is compared with ours: communities are found by Louvain's
method, its resolution in place of Infomap's Markov time. Choices of ours where the sources are silent: an edge weighs the smaller of
the two shares, clusters meet on the grid of patches, and the Jaccard index is a mean over images.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.dense_features import list_split, list_validation, reduce_masks
from densewalk.evaluations.common.refinement import labels_of_patches
from densewalk.evaluations.common.shares import by_first, shared_map
from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import match_clusters, mean_iou, reassign
from densewalk.evaluations.unsupervised_segmentation import foreground as cbfe
from densewalk.evaluations.unsupervised_segmentation.communities import cooccurrence, find_communities
from densewalk.evaluations.unsupervised_segmentation.foreground import Labels, Masks, Patches, Split
from densewalk.evaluations.unsupervised_segmentation.settings import UnsupervisedSegmentationSettings as Settings
from densewalk.evidence.runs import mean_of_runs
from densewalk.evidence.statistics import MeanOfUnits, Statistic
from densewalk.ops.clustering import POINTS, kmeans, nearest_center, sample_points

SMALLEST = 4  # patches in a row, which blurring the attention needs


def evaluate(settings: Settings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone; a strip of matched communities goes to `job.out`."""
    settings = settings.resolved()
    training, validation = list_splits(settings)
    backbone, features = dense_features.load_features(settings, settings.input_size, backbone_path, job)
    if features.size < SMALLEST * backbone.stride:
        raise UserError(
            f"input_size {settings.input_size} has fewer than {SMALLEST} patches of {backbone.stride} px in a row",
            todo=f"raise it to {SMALLEST * backbone.stride} at least",
        )
    features = replace(features, compute=cbfe.with_attention(backbone), kind=settings.FEATURES)
    threshold = settings.threshold
    if threshold is None:
        of_training = cbfe.read_split(settings, features, training, "training")
        threshold = by_first(lambda: cbfe.choose_threshold(settings, of_training, job.seed))
    split = cbfe.read_split(settings, features, validation, "validation")
    foreground = by_first(lambda: cbfe.extract_foreground(settings, split, threshold, job.seed))

    def in_pixels(segmented: Labels) -> Masks:
        return labels_of_patches(settings, segmented, validation, features.size, job.device)

    def parts(seed: int) -> Labels:
        return cluster_foreground(settings, split, foreground, settings.foreground_classes, seed)

    seeds = [derive_seed(job.seed, "parts", i) for i in range(settings.repeats)]
    by_kmeans, _, _, of_kmeans = score_runs(settings, split, parts, in_pixels, seeds)
    seeds = [derive_seed(job.seed, "objects", i) for i in range(settings.community_repeats)]
    by_community, communities, matched, of_communities = score_runs(
        settings, split, lambda seed: find_objects(settings, split, foreground, seed), in_pixels, seeds
    )
    shown = dense_features.shown_numbers(len(validation))
    dense_features.write_strip(settings, job, [dense_features.strip_row(validation[i], split.masks[i], matched[i]) for i in shown])
    details = {
        "input_size": features.size,
        "threshold": round(threshold, 4),
        "foreground_share": 100 * float(foreground.float().mean()),
        "communities_per_run": communities,
        "mIoU_per_run": by_community,
        "mIoU_cbfe_per_run": by_kmeans,
    }
    by_image = cbfe.jaccard(settings, foreground, split.masks)
    j_foreground = 100 * float(by_image.mean())
    metrics = {"mIoU": float(np.mean(by_community)), "mIoU_cbfe": float(np.mean(by_kmeans)), "J_foreground": j_foreground}
    statistics = {"mIoU": of_communities, "mIoU_cbfe": of_kmeans, "J_foreground": MeanOfUnits(by_image.numpy(), scale=100.0)}
    units = dense_features.image_units(settings, validation, statistics)
    return Result(metrics=metrics, n=len(validation), unit="images", details=details, units=units)


def describe_data(settings: Settings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = list_splits(settings)
    return dense_features.describe_splits({"training images": training, "validation images": validation})


def list_splits(settings: Settings) -> tuple[list[Example], list[Example]]:
    """Images whose masks choose the threshold (none where it is given), and images that are scored."""
    needed = settings.threshold is None
    training = list_split(settings, "training", settings.train_list, settings.train_every) if needed else []
    return training, list_validation(settings)


def cluster_foreground(settings: Settings, split: Split, foreground: Patches, count: int, seed: int) -> Labels:
    """The foreground's clusters from 1 on; 0 is the background. k-means sees a patch as often as it has pixels in the masks' size."""
    labels = torch.zeros(foreground.shape, dtype=torch.int64)
    images, rows, columns = foreground.shape
    if not foreground.any():
        return labels
    patch = reduce_masks(torch.arange(rows * columns).view(1, rows, columns), settings.mask_size)
    pixels = (patch + rows * columns * torch.arange(images)[:, None, None])[cbfe.enlarge(foreground, settings.mask_size)]
    points = split.points.flatten(0, 2)[sample_points(pixels, count * POINTS, np.random.default_rng(seed))]
    centers = kmeans(points, count, seed=seed, iterations=settings.iterations, restarts=settings.restarts)
    labels[foreground] = 1 + nearest_center(split.points[foreground], centers)
    return labels


def find_objects(settings: Settings, split: Split, foreground: Patches, seed: int) -> Labels:
    """The communities of the foreground's clusters from 1 on; 0 is the background.

    w_ij = min(share[i, j], share[j, i]) where that reaches `edge_threshold`, else 0: no edge
    """
    labels = cluster_foreground(settings, split, foreground, settings.community_clusters, seed)
    share = cooccurrence(labels, settings.community_clusters, mistyped_angle=bool(settings.mistyped_angle))
    weights = np.minimum(share, share.T)
    weights[weights < settings.edge_threshold] = 0
    wanted = settings.communities or settings.foreground_classes
    found = find_communities(weights, wanted=wanted, seed=derive_seed(seed, "communities"))
    return torch.from_numpy(np.concatenate([[0], 1 + found]))[labels]


def score_runs(
    settings: Settings, split: Split, segment: Callable[[int], Labels], in_pixels: Callable[[Labels], Masks], seeds: Sequence[int]
) -> tuple[list[float], list[int], Masks, Statistic]:
    """mIoU in percent and number of labels besides the background of each seed's run, and the first run's labels after matching.

    The last is what the mean of the former is made of, image by image.

    Args:
        in_pixels: label maps of patches -> those in the masks' size.
    """
    absent: Literal["skip", "zero"] = "zero" if settings.count_absent_classes else "skip"

    def one_run(number: int) -> tuple[float, int, Masks | None, Statistic]:
        segmented = segment(seeds[number])
        predicted = in_pixels(segmented)
        counts = count(settings, predicted, split.masks)
        confusion, assignment = match(settings, counts.matrix)
        miou = 100 * mean_iou(confusion, absent=absent, void=settings.ignored)
        shown = assignment[predicted] if number == 0 else None
        found = counts.matched_iou(matching="hungarian", absent=absent, unmatched=settings.background, void=settings.ignored)
        return miou, len(segmented[segmented > 0].unique()), shown, found

    mious, counts, shown, statistics = zip(*shared_map(one_run, range(len(seeds))), strict=True)
    return [*mious], [*counts], shown[0], mean_of_runs([*statistics])


def count(settings: Settings, segmented: Labels, masks: Masks) -> ImageCounts:
    """Pixels of each class with each label, image by image."""
    predicted, classes = reduce_masks(segmented, settings.mask_size), settings.label_values
    labels, pairs = int(predicted.max()) + 1, zip(masks, predicted, strict=True)
    return ImageCounts.of([counted(mask, p, classes, labels, ignore=settings.ignored) for mask, p in pairs], classes, labels)


def match(settings: Settings, counts: Int[Tensor, "classes labels"]) -> tuple[Int[Tensor, "classes classes"], Int[Tensor, " labels"]]:
    """Confusion matrix after each label has taken its class, one to one, what is left over the background; the class of each label."""
    assignment = match_clusters(counts, "hungarian", settings.ignored)
    assignment = torch.where(assignment < 0, settings.background, assignment)
    return reassign(counts, assignment), assignment
