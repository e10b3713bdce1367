"""(Over)clustering: k-means on frozen patch features, clusters matched to classes.

    densewalk evaluate --spec '{"protocol": "overcluster", ...}' --backbone backbone.safetensors --state DIR --out FILE

Features of all patches of the validation images are standardised, projected on 50 principal components and clustered; each patch's
cluster is compared with the masks, both at 100 x 100 by nearest neighbour. With as many clusters as classes the matching is the
Hungarian one, with more each cluster takes the class that most of its pixels have (NeCo's paper says Hungarian for all, its code
does this). The score is the mean over five k-means runs. Source: NeCo (https://arxiv.org/abs/2408.11054, section 4, table 1) and its
released eval_overcluster.py.

    job.out/strip.png           image, ground truth and matched clusters of some images, of the first run

k-means learns from 256 random points per cluster. The five seeds follow from the job's.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.dense_features import draw, reduced, validation_maps, whole_batches
from densewalk.evaluations.metrics.segmentation import confusion_matrix, hungarian, many_to_one, mean_iou, reassign
from densewalk.evaluations.overcluster.settings import OverclusterSettings
from densewalk.models.feature_cache import Dense
from densewalk.models.loading import load
from densewalk.ops.clustering import PrincipalComponents, kmeans, nearest_center

RELEASED_BATCH = 32


def evaluate(settings: OverclusterSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone.

    Raises:
        UserError: data missing, damaged or with labels beyond the classes; the message names the file.
    """
    settings = settings.resolved()
    examples = dense_features.split(settings, "validation", settings.val_list, settings.val_every, settings.val_offset)
    examples = whole_batches(settings, examples, RELEASED_BATCH)
    backbone = load(backbone_path).eval().to(job.device)
    size = max(1, settings.input_size // backbone.patch) * backbone.patch
    points, masks = components(settings, job.cached(backbone.dense, backbone_path), backbone_path, examples, size, job)
    clusters = settings.clusters or settings.label_values
    scores = []
    for repeat in range(settings.repeats):
        assigned = cluster(settings, points, clusters, derive_seed(job.seed, "overcluster", repeat))
        confusion, assignment = match(settings, assigned, masks, clusters)
        scores.append(100 * mean_iou(confusion, absent="zero" if settings.count_absent_classes else "skip"))
        if repeat == 0:
            draw(settings, job, examples, masks, assignment[reduced(assigned, settings.mask_size).long()])
    details = {"input_size": size, "clusters": clusters, "mIoU_per_run": scores}
    return Result(metrics={"mIoU": sum(scores) / len(scores)}, n=len(examples), unit="images", details=details)


def describe_data(settings: OverclusterSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    examples = dense_features.split(settings, "validation", settings.val_list, settings.val_every, settings.val_offset)
    dense_features.open_first(examples)
    return {"validation images": len(examples)}


def components(
    settings: OverclusterSettings, dense: Dense, backbone: Path, examples: Sequence[Example], size: int, job: Job
) -> tuple[Float[Tensor, "images rows columns kept"], Integer[Tensor, "images mask mask"]]:
    """Principal components of every patch, and the reduced masks.

    Two passes, the second of which finds its features in the cache: those of all images together need not fit into memory.

    Raises:
        UserError: no pixel is labelled.
    """
    fitted, masks = PrincipalComponents(), []
    for maps, mask, _ in validation_maps(settings, dense, backbone, examples, size, job, "overcluster 1/2"):
        fitted.add(maps.flatten(1).T.cpu())
        masks.append(reduced(mask[None].cpu(), settings.mask_size)[0])
    if settings.ignored is not None and all(bool((mask == settings.ignored).all()) for mask in masks):
        raise UserError(f"no pixel of the {len(masks)} validation images in {settings.root} is labelled", todo="check `ignore`")
    again = validation_maps(settings, dense, backbone, examples, size, job, "overcluster 2/2")
    points = [fitted.project(maps.permute(1, 2, 0).cpu(), settings.components) for maps, _, _ in again]
    return torch.stack(points), torch.stack(masks)


def cluster(
    settings: OverclusterSettings, points: Float[Tensor, "images rows columns kept"], clusters: int, seed: int
) -> Int[Tensor, "images rows columns"]:
    """The number of each patch's cluster."""
    centres = kmeans(points.flatten(0, 2), clusters, seed=seed, iterations=settings.iterations, restarts=settings.restarts)
    return torch.stack([nearest_center(image, centres) for image in points])


def match(
    settings: OverclusterSettings, assigned: Int[Tensor, "images rows columns"], masks: Integer[Tensor, "images mask mask"], clusters: int
) -> tuple[Int[Tensor, "classes classes"], Int[Tensor, " clusters"]]:
    """Confusion matrix after the clusters have taken their classes, and the class of each cluster."""
    predicted = reduced(assigned, settings.mask_size)
    counts = confusion_matrix(masks, predicted, settings.label_values, clusters, ignore=settings.ignored).cpu()
    assignment = hungarian(counts) if settings.clusters is None else many_to_one(counts)
    return reassign(counts, assignment), assignment.clamp(min=0)
