"""STEGO: codes of frozen features, learned without labels from their correspondences, and clusters of these codes.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

A head makes a code of each patch's features. It learns that codes agree where features of an image, of one of its nearest images, or
of a random one agree more than a shift, and disagree elsewhere (losses.py). Centers of clusters and a linear probe learn along on the
codes, and send nothing back. The cluster of largest cosine is each pixel's prediction; clusters take classes by the Hungarian
matching of all scored images. Source: STEGO (https://arxiv.org/abs/2203.08414) and its code (docs/deviations.md).

    job.out/strip.png           image, ground truth and matched clusters of some images
    job.state/training/step-*.pt        head, probes and optimizer: every few minutes, where a signal stopped the training, and at its end

The centers of the cluster probe start at random, and one that is nobody's nearest never moves: so the same codes are also clustered by
spherical k-means (`mIoU_kmeans`), and so are the frozen features themselves (`mIoU_features`): what the head adds is the difference.
Features of the training views are computed once, into a scratch file. No value is published for the layouts here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from densewalk.core.hashing import derive_seed
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result, fit_size, training_state
from densewalk.evaluations.common.dense_features import DenseFeatures, list_split, list_validation, reduce_masks
from densewalk.evaluations.common.refinement import refined_labels
from densewalk.evaluations.common.shares import in_order
from densewalk.evaluations.metrics.image_counts import Counted, ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import iou, match_clusters, mean_iou, pixel_accuracy, reassign
from densewalk.evaluations.stego.head import Stego
from densewalk.evaluations.stego.settings import KINDS, StegoSettings
from densewalk.evaluations.stego.train import train
from densewalk.evaluations.stego.views import TrainingView, read_views, require_views, views_of
from densewalk.evidence.statistics import Statistic
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.visualization.overlays import Row

MATCHING: Literal["hungarian_pixels"] = "hungarian_pixels"  # as STEGO's code: other evaluations here match by IoU


def evaluate(settings: StegoSettings, backbone_path: Path, job: Job) -> Result:
    """Train the head on one frozen backbone and score its codes; a strip of matched clusters goes to `job.out`."""
    settings = settings.resolved()
    training, validation = list_splits(settings)
    backbone, whole = dense_features.load_features(settings, settings.input_size, backbone_path, job)
    features = mirrored(dense_features.choose_features(settings, backbone, whole, training))
    cut = replace(whole, size=fit_size(settings.train_size, backbone))
    views_transform = TrainingView(settings, cut.size, cut.statistics)
    cut = dense_features.choose_features(settings, backbone, cut, views_of(settings, training), views_transform)
    torch.manual_seed(derive_seed(job.seed, "stego"))
    model = Stego(settings, cut.dim).to(job.device)
    with training_state(settings, backbone_path, job) as state, deterministic_kernels(job.deterministic, torch.device(job.device)):
        shares = train(settings, model, lambda: read_views(settings, cut, training), state, job)
    counts, rows = score(settings, features, model, validation)
    dense_features.require_labelled(settings, bool(counts["clusters"].count.any()), len(validation), "validation")
    matched, assignment = match(settings, counts["clusters"])
    classes = assignment.numpy()
    dense_features.write_strip(settings, job, [replace(row, prediction=classes[row.prediction]) for row in rows])
    details = {
        "input_size": features.size,
        "training_views": len(training) * settings.views,
        "share_above_shift": {kind: round(float(share), 4) for kind, share in zip(KINDS, shares, strict=True)},
        "pixel_accuracy": 100 * pixel_accuracy(matched),
        "pixel_accuracy_linear": 100 * pixel_accuracy(counts["linear"].matrix),
        **dense_features.iou_details(settings, iou(matched)),
    }
    return summarize(settings, counts, validation, details)


def describe_data(settings: StegoSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = list_splits(settings)
    return dense_features.describe_splits({"training images": training, "validation images": validation})


def list_splits(settings: StegoSettings) -> tuple[list[Example], list[Example]]:
    """Training images, whose labels the linear probe alone sees, and images that are scored."""
    training = list_split(settings, "training", settings.train_list, settings.train_every)
    validation = list_validation(settings)
    require_views(settings, len(training))
    return training, validation


def mirrored(features: DenseFeatures) -> DenseFeatures:
    """Features of an image and, turned back, of its mirrored self: twice the channels, one after the other."""

    def compute(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch both rows columns"]:
        return torch.cat([features.dense(images), features.dense(images.flip(-1)).flip(-1)], dim=1)

    cached = features.kind is not None and features.change is None
    return replace(features, compute=compute, kind="mirrored" if cached else None, change=None, dim=2 * features.dim)


@torch.inference_mode()
def score(
    settings: StegoSettings, features: DenseFeatures, model: Stego, examples: Sequence[Example]
) -> tuple[dict[str, ImageCounts], list[Row]]:
    """Pixels of each class with each probe's labels, image by image, and rows for the strip with the clusters as they are."""
    classes = settings.label_values
    others: dict[str, dict[int, Counted]] = {"kmeans": {}, "features": {}, "linear": {}}

    def predict(maps: Tensor, mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
        target = reduce_masks(mask[None], settings.mask_size)[0]
        shape = mask.shape if settings.refine else target.shape
        found = {}
        for name, scores in model.scores(maps.unflatten(0, (2, -1)), (shape[0], shape[1])).items():
            if settings.refine:
                found[name] = reduce_masks(refined_labels(settings, scores, examples[number])[None], settings.mask_size)[0]
            else:
                found[name] = scores.argmax(0)
        for name, done in others.items():
            done[number] = counted(target, found[name], classes, classes, ignore=settings.ignored)
        return target, found["clusters"]

    clusters, rows = dense_features.score_predictions(features, examples, predict, "validation")
    found = {"clusters": clusters, **{name: ImageCounts.of(in_order(done), classes, classes) for name, done in others.items()}}
    return {name: own if name == "linear" else replace(own, clusters=settings.clusters) for name, own in found.items()}, rows


def match(settings: StegoSettings, counts: ImageCounts) -> tuple[Int[Tensor, "classes classes"], Int[Tensor, " clusters"]]:
    """Confusion matrix after each cluster has taken its class, one to one; the class of each cluster."""
    assignment = match_clusters(counts.matrix, MATCHING, settings.ignored)
    return reassign(counts.matrix, assignment), assignment.clamp(min=0)


def summarize(settings: StegoSettings, counts: dict[str, ImageCounts], examples: Sequence[Example], details: dict[str, Any]) -> Result:
    """Metrics in percent, and what they are made of."""
    one = replace(counts["clusters"], clusters=1, predicted=np.zeros_like(counts["clusters"].predicted))
    matched = {"mIoU": counts["clusters"], "mIoU_kmeans": counts["kmeans"], "mIoU_features": counts["features"], "mIoU_constant": one}
    statistics: dict[str, Statistic] = {name: own.matched_iou(matching=MATCHING, void=settings.ignored) for name, own in matched.items()}
    statistics["mIoU_linear"] = counts["linear"].mean_iou(void=settings.ignored)
    metrics = {name: 100 * mean_iou(match(settings, own)[0], void=settings.ignored) for name, own in matched.items()}
    metrics["mIoU_linear"] = 100 * mean_iou(counts["linear"].matrix, void=settings.ignored)
    units = dense_features.image_units(settings, examples, statistics)
    return Result({name: metrics[name] for name in settings.METRICS}, len(examples), "images", details, units)
