"""Fully unsupervised segmentation: foreground by attention, objects as communities of parts that occur together.

    densewalk evaluate --spec '{"protocol": "unsupervised_segmentation", ...}' --backbone backbone.safetensors --state DIR --out FILE

Cluster-based foreground extraction (CBFE). Features of all patches are standardised, projected on 50 principal components and
clustered by spherical k-means; the CLS token's attention gives each image a noisy foreground (foreground.py).

    precision(k)  = mean over images with cluster k of |k and attended| / |k|
    threshold     = precision of the cluster at the best cut, rounded to 0.05: of all cuts that leave the 55 to 75 % of the clusters
                    with the lowest precision to the background, the one whose foreground has the largest Jaccard index with the
                    training images' masks, mean over images
    foreground    = patches of clusters with precision >= threshold

Training and validation images are clustered each by themselves; the threshold is taken over. `mIoU_cbfe` is the score of the
foreground's k-means with as many clusters as foreground classes, the background being one cluster more. Community detection (CD):

    C_n[i, j]     = how often in image n cluster j lies at one of OFFSETS from cluster i, both in the foreground
    share[i, j]   = mean over images with a neighbour of i of C_n[i, j] / sum over l of C_n[i, l]
    w_ij          = min(share[i, j], share[j, i]) where that reaches `edge_threshold`, else 0: no edge
    object        = community of the network w of the foreground's k-means clusters

All matchings are the Hungarian one on masks of 100 x 100 by nearest neighbour, what it leaves over being background; scores are
means over runs with seeds of their own. Sources: Leopart (https://arxiv.org/abs/2204.13101, section 3.3) and NeCo
(https://arxiv.org/abs/2408.11054, section 4, table 1b).

    job.out/strip.png           image, ground truth and matched communities of some images, of the first run

Not the published protocol (docs/deviations.md), so that no published value stands beside ours: communities are found by Louvain's
method (communities.py), its resolution in place of Infomap's Markov time. Choices of ours where the sources are silent: an edge
weighs the smaller of the two shares, rows count the cluster itself, clusters meet on the grid of patches, and the Jaccard index is
a mean over images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.dense_features import draw, reduced, validation_maps
from densewalk.evaluations.metrics.segmentation import confusion_matrix, hungarian, mean_iou, reassign
from densewalk.evaluations.unsupervised_segmentation.communities import communities
from densewalk.evaluations.unsupervised_segmentation.settings import UnsupervisedSegmentationSettings
from densewalk.models.backbone import Backbone
from densewalk.models.feature_cache import Dense
from densewalk.models.loading import load
from densewalk.ops.attention_mask import foreground_masks
from densewalk.ops.clustering import POINTS, PrincipalComponents, kmeans, nearest_center, sample_points, spherical_kmeans

CUTS = (0.55, 0.75)  # shares of the clusters that may be background
ROUNDED = 0.05
SMALLEST = 4  # patches in a row, which blurring the attention needs
# grey-level co-occurrence at distances 1 and 2 and eight angles, rounded to whole patches: diagonal neighbours are there twice
OFFSETS = tuple(
    (round(distance * np.sin(angle)), round(distance * np.cos(angle))) for distance in (1, 2) for angle in np.arange(8) * np.pi / 4
)


def evaluate(settings: UnsupervisedSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone.

    Raises:
        UserError: data missing, damaged or with labels beyond the classes; the message names the file.
    """
    settings = settings.resolved()
    training, validation = splits(settings)
    backbone = load(backbone_path).eval().to(job.device)
    size = settings.input_size // backbone.patch * backbone.patch
    if size < SMALLEST * backbone.patch:
        raise UserError(
            f"input_size {settings.input_size} has fewer than {SMALLEST} patches of {backbone.patch} px in a row",
            todo=f"raise it to {SMALLEST * backbone.patch} at least",
        )
    seen = job.cached(with_attention(backbone), backbone_path, "attention")
    learnt = None if settings.threshold is not None else look(settings, seen, backbone_path, training, size, job, "training")
    threshold = settings.threshold if learnt is None else choose_threshold(settings, learnt, job.seed)
    assert threshold is not None
    side = look(settings, seen, backbone_path, validation, size, job, "validation")
    assigned = cluster_all(settings, side, job.seed)
    foreground = (precisions(assigned, side.attended, settings.foreground_clusters) >= threshold - 1e-6)[assigned]

    def seeds(what: str, number: int) -> list[int]:
        return [derive_seed(job.seed, what, repeat) for repeat in range(number)]

    count = settings.foreground_classes
    by_kmeans = repeated(settings, side, lambda seed: parts(settings, side, foreground, count, seed), seeds("parts", settings.repeats))
    by_community = repeated(
        settings, side, lambda seed: objects(settings, side, foreground, seed), seeds("objects", settings.community_repeats)
    )
    draw(settings, job, validation, side.masks, by_community.first)
    details = {
        "input_size": size,
        "threshold": round(threshold, 4),
        "foreground_share": 100 * float(foreground.float().mean()),
        "communities_per_run": by_community.labels,
        "mIoU_per_run": by_community.mious,
        "mIoU_cbfe_per_run": by_kmeans.mious,
    }
    metrics = {
        "mIoU": float(np.mean(by_community.mious)),
        "mIoU_cbfe": float(np.mean(by_kmeans.mious)),
        "J_foreground": 100 * jaccard(settings, foreground, side.masks),
    }
    return Result(metrics=metrics, n=len(validation), unit="images", details=details)


def describe_data(settings: UnsupervisedSegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = splits(settings)
    dense_features.open_first(*([training] if training else []), validation)
    return {"training images": len(training), "validation images": len(validation)}


def splits(settings: UnsupervisedSegmentationSettings) -> tuple[list[Example], list[Example]]:
    """Images whose masks choose the threshold (none where it is given), and images that are scored."""
    needed = settings.threshold is None
    training = dense_features.split(settings, "training", settings.train_list, settings.train_every) if needed else []
    return training, dense_features.split(settings, "validation", settings.val_list, settings.val_every, settings.val_offset)


# -- what is seen ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """Images of one side: each patch's principal components, whether the attention has it, and the reduced masks."""

    points: Float[Tensor, "images rows columns kept"]
    attended: Bool[Tensor, "images rows columns"]
    masks: Integer[Tensor, "images mask mask"]


def with_attention(backbone: Backbone) -> Dense:
    """Patch features and, as one dimension more, the CLS token's attention, mean of the heads: one forward pass for both."""

    def seen(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim_and_attention rows columns"]:
        last = backbone.last_block(images)
        attention = last.cls_attention.mean(1).unflatten(1, last.tokens.grid)
        return torch.cat([last.tokens.dense(), attention[:, None]], dim=1)

    return seen


def look(
    settings: UnsupervisedSegmentationSettings, seen: Dense, backbone: Path, examples: Sequence[Example], size: int, job: Job, label: str
) -> Side:
    """Everything about one side's images, in two passes: the features of all together need not fit into memory.

    Raises:
        UserError: no pixel is labelled.
    """
    fitted, masks, attention = PrincipalComponents(), [], []
    for maps, mask, _ in validation_maps(settings, seen, backbone, examples, size, job, f"{label} 1/2"):
        fitted.add(maps[:-1].flatten(1).T.cpu())
        attention.append(maps[-1].cpu())
        masks.append(reduced(mask[None].cpu(), settings.mask_size)[0])
    if settings.ignored is not None and all(bool((mask == settings.ignored).all()) for mask in masks):
        raise UserError(f"no pixel of the {len(masks)} {label} images in {settings.root} is labelled", todo="check `ignore`")
    again = validation_maps(settings, seen, backbone, examples, size, job, f"{label} 2/2")
    points = [fitted.project(maps[:-1].permute(1, 2, 0).cpu(), settings.components) for maps, _, _ in again]
    return Side(torch.stack(points), foreground_masks(torch.stack(attention), settings.mass), torch.stack(masks))


# -- foreground --------------------------------------------------------------------------------------------------------


def cluster_all(settings: UnsupervisedSegmentationSettings, side: Side, seed: int) -> Int[Tensor, "images rows columns"]:
    """Each patch's cluster, by spherical k-means."""
    centres = spherical_kmeans(
        side.points.flatten(0, 2),
        settings.foreground_clusters,
        seed=derive_seed(seed, "foreground"),
        iterations=settings.iterations,
        restarts=settings.restarts,
    )
    return torch.stack([nearest_center(image, centres) for image in side.points])


def precisions(
    assigned: Int[Tensor, "images rows columns"], attended: Bool[Tensor, "images rows columns"], clusters: int
) -> Float[Tensor, " {clusters}"]:
    """Share of each cluster that the attention has, mean over the images that it occurs in; 0 for a cluster without a patch."""
    shares = []
    for labels, mask in zip(assigned, attended, strict=True):
        every = torch.bincount(labels.flatten(), minlength=clusters).double()
        inside = torch.bincount(labels[mask], minlength=clusters).double()
        shares.append(inside / every)  # NaN where the cluster does not occur
    return torch.stack(shares).nanmean(0).nan_to_num(0.0)


def choose_threshold(settings: UnsupervisedSegmentationSettings, side: Side, seed: int) -> float:
    """The precision from which on a cluster is foreground, by the masks of the training images.

    Raises:
        UserError: the masks have no foreground.
    """
    if not (scored(settings, side.masks) & (side.masks != settings.background)).any():
        raise UserError(f"no pixel of the {len(side.masks)} training images in {settings.root} is foreground", todo="check `background`")
    assigned = cluster_all(settings, side, seed)
    precision = precisions(assigned, side.attended, settings.foreground_clusters)
    ascending = precision.argsort(stable=True)
    low, high = (round(share * len(precision)) for share in CUTS)
    found = []
    for cut in range(low, high + 1):
        chosen = torch.ones_like(precision, dtype=torch.bool)
        chosen[ascending[:cut]] = False
        found.append(jaccard(settings, chosen[assigned], side.masks))
    at_best = precision[ascending[low + int(np.argmax(found))]]
    return ROUNDED * round(float(at_best) / ROUNDED)


def jaccard(
    settings: UnsupervisedSegmentationSettings, foreground: Bool[Tensor, "images rows columns"], masks: Integer[Tensor, "images mask mask"]
) -> float:
    """Intersection over union of the foreground with the masks', mean over images: 1 where both are empty, ignored pixels left out."""
    counted = scored(settings, masks)
    found, truth = enlarged(foreground, settings.mask_size) & counted, (masks != settings.background) & counted
    both, either = ((found & truth).flatten(1).sum(1).double(), (found | truth).flatten(1).sum(1).double())
    return float(torch.where(either > 0, both / either, 1.0).mean())


def enlarged(foreground: Bool[Tensor, "images rows columns"], size: int) -> Bool[Tensor, "images {size} {size}"]:
    """The foreground in the masks' size, by nearest neighbour."""
    return reduced(foreground.long(), size).bool()


def scored(settings: UnsupervisedSegmentationSettings, masks: Integer[Tensor, "images mask mask"]) -> Bool[Tensor, "images mask mask"]:
    """Pixels that count."""
    return torch.ones_like(masks, dtype=torch.bool) if settings.ignored is None else masks != settings.ignored


# -- parts and objects -------------------------------------------------------------------------------------------------


def parts(
    settings: UnsupervisedSegmentationSettings, side: Side, foreground: Bool[Tensor, "images rows columns"], count: int, seed: int
) -> Int[Tensor, "images rows columns"]:
    """The foreground's clusters from 1 on; 0 is the background. k-means sees a patch as often as it has pixels in the masks' size."""
    labels = torch.zeros(foreground.shape, dtype=torch.int64)
    images, rows, columns = foreground.shape
    if not foreground.any():
        return labels
    patch = reduced(torch.arange(rows * columns).view(1, rows, columns), settings.mask_size)
    pixels = (patch + rows * columns * torch.arange(images)[:, None, None])[enlarged(foreground, settings.mask_size)]
    seen = side.points.flatten(0, 2)[sample_points(pixels, count * POINTS, np.random.default_rng(seed))]
    centres = kmeans(seen, count, seed=seed, iterations=settings.iterations, restarts=settings.restarts)
    labels[foreground] = 1 + nearest_center(side.points[foreground], centres)
    return labels


def objects(
    settings: UnsupervisedSegmentationSettings, side: Side, foreground: Bool[Tensor, "images rows columns"], seed: int
) -> Int[Tensor, "images rows columns"]:
    """The communities of the foreground's clusters from 1 on; 0 is the background."""
    labels = parts(settings, side, foreground, settings.community_clusters, seed)
    share = cooccurrence(labels, settings.community_clusters)
    weights = np.minimum(share, share.T)
    weights[weights < settings.edge_threshold] = 0
    wanted = settings.communities or settings.foreground_classes
    found = communities(weights, wanted=wanted, seed=derive_seed(seed, "communities"))
    return torch.from_numpy(np.concatenate([[0], 1 + found]))[labels]


def cooccurrence(labels: Int[Tensor, "images rows columns"], clusters: int) -> Float[np.ndarray, "{clusters} {clusters}"]:
    """How much of each cluster's neighbourhood each cluster makes up, mean over the images where it has one; 0 is the background.

    for image:
        for p, offset:
            if p and p + offset lie in the image and in the foreground:
                C[labels[p], labels[p + offset]] += 1
        for i with a neighbour: total[i] += C[i] / sum(C[i]);  count[i] += 1
    share[i] = total[i] / count[i]
    """
    total, count = np.zeros((clusters, clusters)), np.zeros((clusters, 1))
    for image in labels.numpy():
        pairs = np.concatenate([_pairs(image, *offset) for offset in OFFSETS])
        pairs = pairs[(pairs > 0).all(1)] - 1
        met = np.bincount(pairs @ (clusters, 1), minlength=clusters**2).reshape(clusters, clusters)
        neighbours = met.sum(1, keepdims=True)
        total += met / np.maximum(neighbours, 1)
        count += neighbours > 0
    return total / np.maximum(count, 1)


def _pairs(image: Int[np.ndarray, "rows columns"], down: int, right: int) -> Int[np.ndarray, "pairs 2"]:
    """Labels of all p and p + (down, right) within the image."""
    rows, columns = image.shape
    first = image[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
    second = image[max(0, down) : rows - max(0, -down), max(0, right) : columns - max(0, -right)]
    return np.stack([first.ravel(), second.ravel()], axis=1)


# -- scores ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """mIoU in percent and number of labels beside the background of each run, and the first run's labels after matching."""

    mious: list[float]
    labels: list[int]
    first: Int[Tensor, "images mask mask"]


def repeated(
    settings: UnsupervisedSegmentationSettings,
    side: Side,
    segment: Callable[[int], Int[Tensor, "images rows columns"]],
    seeds: Sequence[int],
) -> Scores:
    """The scores of what `segment` makes of each seed."""
    mious: list[float] = []
    labels: list[int] = []
    shown: list[Tensor] = []
    for seed in seeds:
        segmented = segment(seed)
        confusion, assignment = match(settings, segmented, side.masks)
        mious.append(100 * mean_iou(confusion, absent="zero" if settings.count_absent_classes else "skip"))
        labels.append(len(segmented[segmented > 0].unique()))
        if not shown:
            shown.append(assignment[reduced(segmented, settings.mask_size)])
    return Scores(mious, labels, shown[0])


def match(
    settings: UnsupervisedSegmentationSettings, segmented: Int[Tensor, "images rows columns"], masks: Integer[Tensor, "images mask mask"]
) -> tuple[Int[Tensor, "classes classes"], Int[Tensor, " labels"]]:
    """Confusion matrix after each label has taken its class, one to one, what is left over the background; the class of each label."""
    predicted = reduced(segmented, settings.mask_size)
    counts = confusion_matrix(masks, predicted, settings.label_values, int(predicted.max()) + 1, ignore=settings.ignored).cpu()
    assignment = hungarian(counts)
    if settings.ignored is not None:  # where the ignored label is one of the classes, it has no pixel to be matched by
        assignment[assignment == settings.ignored] = -1
    assignment = torch.where(assignment < 0, settings.background, assignment)
    return reassign(counts, assignment), assignment
