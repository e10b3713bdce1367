"""Cluster-based foreground extraction (CBFE): clusters of patches on which the attention lies, without or with a few masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common.components import project_features
from densewalk.evaluations.common.dense_features import DenseFeatures, reduce_masks
from densewalk.evaluations.unsupervised_segmentation.settings import UnsupervisedSegmentationSettings as Settings
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network
from densewalk.ops.attention_mask import foreground_masks
from densewalk.ops.clustering import nearest_center, spherical_kmeans

Labels = Int[Tensor, "images rows columns"]
Patches = Bool[Tensor, "images rows columns"]
Masks = Integer[Tensor, "images mask mask"]
CUTS = (0.55, 0.75)  # shares of the clusters that may be background
ROUNDED = 0.05


@dataclass(frozen=True)
class Split:
    """Images of one split: each patch's principal components, whether the attention holds it, and the reduced masks."""

    points: Float[Tensor, "images rows columns kept"]
    attended: Patches
    masks: Masks


def with_attention(backbone: Network) -> Dense:
    """Patch features and, as one dimension more, the CLS token's attention, mean of the heads: one forward pass for both."""

    def compute(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim_and_attention rows columns"]:
        maps, attention = backbone.dense_and_attention(images)
        return torch.cat([maps, attention.mean(1, keepdim=True)], dim=1)

    return compute


def read_split(settings: Settings, features: DenseFeatures, examples: Sequence[Example], name: str) -> Split:
    """The images of a split. `features` are those of `with_attention`."""
    points, attention, masks = project_features(features, examples, name, settings.components, settings.mask_size, extra=1)
    return Split(points, foreground_masks(attention[:, 0], settings.mass), masks)


def cluster_patches(settings: Settings, split: Split, seed: int) -> Labels:
    """Each patch's cluster, by spherical k-means."""
    lengths = {"iterations": settings.iterations, "restarts": settings.restarts}
    centers = spherical_kmeans(split.points.flatten(0, 2), settings.foreground_clusters, seed=derive_seed(seed, "foreground"), **lengths)
    return torch.stack([nearest_center(image, centers) for image in split.points])


def cluster_precisions(assigned: Labels, attended: Patches, clusters: int) -> Float[Tensor, " {clusters}"]:
    """Share of each cluster that the attention holds, mean over the images that it occurs in; 0 for a cluster without a patch."""
    shares = []
    for labels, mask in zip(assigned, attended, strict=True):
        every = torch.bincount(labels.flatten(), minlength=clusters).double()
        inside = torch.bincount(labels[mask], minlength=clusters).double()
        shares.append(inside / every)  # NaN where the cluster does not occur
    return torch.stack(shares).nanmean(0).nan_to_num(0.0)


def extract_foreground(settings: Settings, split: Split, threshold: float, seed: int) -> Patches:
    """The patches of clusters whose precision reaches the threshold."""
    assigned = cluster_patches(settings, split, seed)
    return (cluster_precisions(assigned, split.attended, settings.foreground_clusters) >= threshold - 1e-6)[assigned]


def choose_threshold(settings: Settings, split: Split, seed: int) -> float:
    """The precision from which on a cluster is foreground, by the masks of the training images, rounded to 0.05.

    It is the precision of the cluster at the best cut: of all cuts that leave the 55 to 75 % of the clusters with the lowest precision
    to the background, the one whose foreground has the largest Jaccard index.
    """
    if not (is_scored(settings, split.masks) & (split.masks != settings.background)).any():
        raise UserError(f"no pixel of the {len(split.masks)} training images in {settings.root} is foreground", todo="check `background`")
    assigned = cluster_patches(settings, split, seed)
    precision = cluster_precisions(assigned, split.attended, settings.foreground_clusters)
    ascending = precision.argsort(stable=True)
    low, high = (round(share * len(precision)) for share in CUTS)
    found = []
    for cut in range(low, high + 1):
        chosen = torch.ones_like(precision, dtype=torch.bool)
        chosen[ascending[:cut]] = False
        found.append(float(jaccard(settings, chosen[assigned], split.masks).mean()))
    at_best = precision[ascending[low + int(np.argmax(found))]]
    return ROUNDED * round(float(at_best) / ROUNDED)


def jaccard(settings: Settings, foreground: Patches, masks: Masks) -> Float[Tensor, " images"]:
    """Intersection over union of the foreground with the masks', of each image: 1 where both are empty, ignored pixels left out."""
    scored = is_scored(settings, masks)
    found, truth = enlarge(foreground, settings.mask_size) & scored, (masks != settings.background) & scored
    both, either = ((found & truth).flatten(1).sum(1).double(), (found | truth).flatten(1).sum(1).double())
    return torch.where(either > 0, both / either, 1.0)


def enlarge(foreground: Patches, size: int) -> Bool[Tensor, "images {size} {size}"]:
    """The foreground in the masks' size, by nearest neighbor."""
    return reduce_masks(foreground.long(), size).bool()


def is_scored(settings: Settings, masks: Masks) -> Bool[Tensor, "images mask mask"]:
    """True where a pixel counts."""
    return torch.ones_like(masks, dtype=torch.bool) if settings.ignored is None else masks != settings.ignored
