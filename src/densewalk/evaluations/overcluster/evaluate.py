"""(Over)clustering: k-means on frozen patch features, clusters matched to classes.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Features of all patches of the validation images are standardized, projected on 50 principal components and clustered; each patch's
cluster is compared with the masks, both at 100 x 100 by nearest neighbor. With as many clusters as classes the matching is the
Hungarian one, with more each cluster takes the class that most of its pixels have (NeCo's paper says Hungarian for all, its code
does this; with `many_to_one: iou` it takes the class of largest IoU). The score is the mean over five k-means runs. Source: NeCo
(https://arxiv.org/abs/2408.11054, section 4, table 1) and its released eval_overcluster.py.

    job.out/strip.png           image, ground truth and matched clusters of some images, of the first run

k-means learns from 256 random points per cluster. The five seeds follow from the job's.
"""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from densewalk.core.hashing import derive_seed
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.components import project_features
from densewalk.evaluations.common.dense_features import list_validation, reduce_masks
from densewalk.evaluations.common.refinement import labels_of_patches
from densewalk.evaluations.common.shares import shared_map
from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import match_clusters, mean_iou, reassign
from densewalk.evaluations.overcluster.settings import OverclusterSettings
from densewalk.evidence.runs import mean_of_runs
from densewalk.evidence.statistics import Statistic
from densewalk.ops.clustering import kmeans, nearest_center

RELEASED_BATCH = 32
Assigned = Int[Tensor, "images rows columns"]


def evaluate(settings: OverclusterSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone; a strip of matched clusters goes to `job.out`."""
    settings = settings.resolved()
    examples = dense_features.whole_batches(settings, list_validation(settings), RELEASED_BATCH)
    _, features = dense_features.load_features(settings, settings.input_size, backbone_path, job)
    points, _, masks = project_features(features, examples, "validation", settings.components, settings.mask_size)
    clusters = settings.clusters or settings.scored_classes

    absent: Literal["skip", "zero"] = "zero" if settings.count_absent_classes else "skip"

    def one_run(repeat: int) -> tuple[float, Statistic]:
        assigned = cluster(settings, points, clusters, derive_seed(job.seed, "overcluster", repeat))
        predicted = labels_of_patches(settings, assigned, examples, features.size, job.device)
        counts = count(settings, predicted, masks, clusters)
        confusion, assignment = match(settings, counts.matrix)
        if repeat == 0:  # process 0's
            matched = assignment[predicted]
            shown = dense_features.shown_numbers(len(examples))
            dense_features.write_strip(settings, job, [dense_features.strip_row(examples[i], masks[i], matched[i]) for i in shown])
        statistic = counts.matched_iou(matching=settings.matching, absent=absent, void=settings.void)
        return 100 * mean_iou(confusion, absent=absent, void=settings.void), statistic

    scores, statistics = (list(column) for column in zip(*shared_map(one_run, range(settings.repeats)), strict=True))
    units = dense_features.image_units(settings, examples, {"mIoU": mean_of_runs(statistics)})
    details = {"input_size": features.size, "clusters": clusters, "mIoU_per_run": scores}
    return Result(metrics={"mIoU": sum(scores) / len(scores)}, n=len(examples), unit="images", details=details, units=units)


def describe_data(settings: OverclusterSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    return dense_features.describe_splits({"validation images": list_validation(settings)})


def cluster(settings: OverclusterSettings, points: Float[Tensor, "images rows columns kept"], clusters: int, seed: int) -> Assigned:
    """The number of each patch's cluster."""
    centers = kmeans(points.flatten(0, 2), clusters, seed=seed, iterations=settings.iterations, restarts=settings.restarts)
    return torch.stack([nearest_center(image, centers) for image in points])


def count(settings: OverclusterSettings, assigned: Assigned, masks: Integer[Tensor, "images mask mask"], clusters: int) -> ImageCounts:
    """Pixels of each class in each cluster, image by image."""
    predicted, classes = reduce_masks(assigned, settings.mask_size), settings.label_values
    pairs = zip(masks, predicted, strict=True)
    return ImageCounts.of([counted(mask, p, classes, clusters, ignore=settings.ignored) for mask, p in pairs], classes, clusters)


def match(
    settings: OverclusterSettings, counts: Int[Tensor, "classes clusters"]
) -> tuple[Int[Tensor, "classes classes"], Int[Tensor, " clusters"]]:
    """Confusion matrix after the clusters have taken their classes, and the class of each cluster."""
    assignment = match_clusters(counts, settings.matching, settings.void)
    return reassign(counts, assignment), assignment.clamp(min=0)
