"""Unsupervised video segmentation: clusters of frozen patch features, matched to the objects of annotated videos.

    densewalk evaluate --spec '{"protocol": "video_segmentation", ...}' --backbone backbone.safetensors --state DIR --out FILE

Frames are cut to a square. Features of all patches are standardised and projected on their principal components, interpolated to
the pixels and clustered by k-means: for each frame by itself (F), each clip (C), or the whole data set at once (D). Clusters are
matched to labels, background among them, within the same frame, clip or data set, and the mIoU is averaged over frames or clips.
With as many clusters as labels the matching is the Hungarian one, with more (F_over, C_over, D_over) each cluster takes the label
that most of its pixels have. Source: Time-Tuning (https://arxiv.org/abs/2308.11796, section 4) and its released evaluation.py,
clustering.py and metrics.py.

    job.out/{sequence}.png      frames of the first clip: the labels above, its clusters (C) below

Choices of ours where the release leaves it to edited lines or to chance: objects keep their number within a video and are classes
of their own in the data set (its in-place renumbering merges some of them); the components are those of the clip for F and C, and
of the data set for D; k-means draws its random points from the job's seed. Scores equal the release's for given clusters.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.core.hashing import derive_seed
from densewalk.core.progress import track
from densewalk.data.benchmarks.video_objects import LabelledVideo, list_davis, list_youtube_vos
from densewalk.data.images import normalize, read_rgb
from densewalk.evaluations.common.base import Job, Result, require_finite
from densewalk.evaluations.metrics.segmentation import confusion_matrix, hungarian, many_to_one, mean_iou, reassign
from densewalk.evaluations.video_segmentation.settings import VideoSegmentationSettings
from densewalk.models.backbone import Backbone
from densewalk.models.loading import load
from densewalk.ops.clustering import PrincipalComponents, kmeans
from densewalk.visualization.strips import write_rows

POINTS_PER_CLUSTER = 256  # random pixels that k-means learns from, faiss's rule
Matching = Literal["hungarian", "many_to_one"]


def evaluate(settings: VideoSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone.

    Raises:
        UserError: data missing or damaged; the message names the file.
    """
    clips = find_clips(settings)
    backbone = load(backbone_path).eval().to(job.device)
    side = max(1, settings.size // backbone.patch) * backbone.patch
    scores: dict[str, list[float]] = {name: [] for name in settings.METRICS}
    seen: list[Seen] = []
    components = PrincipalComponents()
    for clip in track(clips, "video_segmentation"):
        view = look(backbone, clip, side, settings)
        components.add(view.features.flatten(0, 1))
        by_clip = PrincipalComponents(view.features.flatten(0, 1)).project(view.features, settings.components)
        score_clip(scores, view, by_clip, settings, job, clip)
        seen.append(Seen(view.features, view.grid, view.small_labels))
    score_dataset(scores, seen, components, settings, job)
    metrics = {name: 100 * float(np.mean(values)) for name, values in scores.items()}
    return Result(metrics=metrics, n=len(scores["F"]), unit="frames", details={"clips": len(clips), "input_size": side})


def describe_data(settings: VideoSegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    clips = find_clips(settings)
    return {"clips": len(clips), "frames": sum(len(clip.numbers) for clip in clips)}


# -- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Some frames of a sequence. offset: the data set's number of the sequence's object 1, less 1."""

    sequence: LabelledVideo
    numbers: list[int]
    offset: int


@dataclass(frozen=True)
class View:
    """What one clip looks like to the backbone. Labels have the data set's numbers; 0 is background."""

    images: UInt8[np.ndarray, "frames size size 3"]
    features: Float[Tensor, "frames patches dim"]
    grid: tuple[int, int]
    labels: Int[Tensor, "frames height width"]
    small_labels: Int[Tensor, "frames small small"]


@dataclass(frozen=True)
class Seen:
    """What is kept of a clip until the whole data set is clustered; see `View`."""

    features: Float[Tensor, "frames patches dim"]
    grid: tuple[int, int]
    labels: Int[Tensor, "frames small small"]


def find_clips(settings: VideoSegmentationSettings) -> list[Clip]:
    """Every sequence cut into consecutive clips.

    Raises:
        UserError: see `evaluate`.
    """
    if settings.layout == "davis":
        year, split = settings.year, settings.split or "val"
        sequences = list_davis(settings.root, year=year, split=split, resolution=settings.resolution, only=settings.sequences)
    else:
        sequences = list_youtube_vos(settings.root, split=settings.split or "train", only=settings.sequences)
    clips, offset = [], 0
    for sequence in sequences:
        numbers = list(range(len(sequence)))
        clips += [Clip(sequence, numbers[i : i + settings.frames], offset) for i in range(0, len(numbers), settings.frames)]
        offset += max(int(sequence.mask(number).max()) for number in numbers)
    return clips


@torch.inference_mode()
def look(backbone: Backbone, clip: Clip, side: int, settings: VideoSegmentationSettings) -> View:
    """Square frames, their features and labels.

    Raises:
        UserError: features are not finite; the message names the frame.
    """
    device = next(backbone.parameters()).device
    images = torch.stack([square(read_rgb(clip.sequence.frames[n]), side, InterpolationMode.BILINEAR) for n in clip.numbers])
    tokens = backbone.tokens(normalize(images.to(device).float() / 255))
    require_finite(tokens.patches, [clip.sequence.frames[n] for n in clip.numbers], backbone.source)
    masks = [torch.from_numpy(clip.sequence.mask(n))[None].long() for n in clip.numbers]
    large, small = (torch.cat([square(mask, size, InterpolationMode.NEAREST) for mask in masks]) for size in (side, settings.dataset_size))
    return View(
        images=images.permute(0, 2, 3, 1).numpy(),
        features=tokens.patches.cpu(),
        grid=tokens.grid,
        labels=torch.where(large > 0, large + clip.offset, 0),
        small_labels=torch.where(small > 0, small + clip.offset, 0),
    )


def square(picture: Tensor, side: int, interpolation: InterpolationMode) -> Tensor:
    """[channels, height, width] resized to a short side of `side`, and the middle of that."""
    return tv.center_crop(tv.resize(picture, [side], interpolation, antialias=True), [side, side])


# -- scores ----------------------------------------------------------------------------------------------------------


def score_clip(
    scores: dict[str, list[float]],
    view: View,
    components: Float[Tensor, "frames patches kept"],
    settings: VideoSegmentationSettings,
    job: Job,
    clip: Clip,
) -> None:
    """Add F and C of one clip, and draw the first clip of its sequence."""
    seed = derive_seed(job.seed, clip.sequence.name, clip.numbers[0])
    for frame in range(len(components)):
        labels = view.labels[frame : frame + 1]
        for name, count in (("F", len(labels.unique())), ("F_over", settings.clusters)):
            maps = cluster_maps(components[frame : frame + 1], view.grid, labels.shape[-1], count, settings, seed + frame)
            scores[name].append(match_and_score(labels, maps, count, matching(name))[0])
    for name, count in (("C", len(view.labels.unique())), ("C_over", settings.clusters)):
        maps = cluster_maps(components, view.grid, view.labels.shape[-1], count, settings, seed)
        value, matched = match_and_score(view.labels, maps, count, matching(name))
        scores[name].append(value)
        if name == "C" and clip.numbers[0] == 0:
            draw(job.out / f"{clip.sequence.name}.png", view, matched, clip.offset)


def score_dataset(
    scores: dict[str, list[float]], seen: list[Seen], components: PrincipalComponents, settings: VideoSegmentationSettings, job: Job
) -> None:
    """Add D of all clips together."""
    projected = torch.cat([components.project(clip.features, settings.components) for clip in seen])
    labels = torch.cat([clip.labels for clip in seen])
    for name, count in (("D", len(labels.unique())), ("D_over", settings.dataset_clusters)):
        maps = cluster_maps(projected, seen[0].grid, settings.dataset_size, count, settings, derive_seed(job.seed, name))
        scores[name].append(match_and_score(labels, maps, count, matching(name))[0])


def matching(metric: str) -> Matching:
    """How the metric's clusters find their labels."""
    return "many_to_one" if metric.endswith("_over") else "hungarian"


def match_and_score(
    labels: Int[Tensor, "frames height width"], maps: Int[Tensor, "frames height width"], clusters: int, how: Matching
) -> tuple[float, Int[Tensor, "frames height width"]]:
    """mIoU (0..1) over the labels that occur, and the label that each pixel's cluster was given; without one it is background."""
    values = torch.cat([torch.zeros(1, dtype=torch.int64), labels.flatten()]).unique()
    confusion = confusion_matrix(torch.searchsorted(values, labels), maps, len(values), clusters)
    assignment = hungarian(confusion) if how == "hungarian" else many_to_one(confusion)
    return mean_iou(reassign(confusion, assignment)), values[assignment.clamp(min=0)][maps]


# -- clusters --------------------------------------------------------------------------------------------------------


def cluster_maps(
    components: Float[Tensor, "frames patches dim"],
    grid: tuple[int, int],
    size: int,
    count: int,
    settings: VideoSegmentationSettings,
    seed: int,
) -> Int[Tensor, "frames {size} {size}"]:
    """k-means over the pixels of all frames together, features being interpolated bilinearly to `size` x `size` pixels.

    The pixels' features need not exist, but for those that k-means learns from: |x - c|^2 - |x|^2 = |c|^2 - 2 x . c is linear in x,
    so that instead of 50 components of x it is interpolated itself, for as many centres as there are.
    """
    chosen = sample_pixels(len(components), size, count * POINTS_PER_CLUSTER, seed)
    learnt = torch.cat([pixels(frame, grid, size, own) for frame, own in zip(components, chosen, strict=True)])
    centres = kmeans(learnt, count, seed=seed, iterations=settings.iterations, restarts=settings.restarts)
    squares = centres.square().sum(dim=1)[:, None]
    distances = ((squares - 2 * centres @ frame.T).unflatten(1, grid)[None] for frame in components)
    return torch.cat([F.interpolate(d, (size, size), mode="bilinear").argmin(dim=1) for d in distances])


def sample_pixels(frames: int, size: int, most: int, seed: int) -> list[Int[Tensor, " chosen"]]:
    """At most `most` random pixels of all frames together, as each frame's pixel numbers."""
    per_frame = size * size
    total = frames * per_frame
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(total, most), replace=False))
    edges = np.searchsorted(chosen, np.arange(frames + 1) * per_frame)
    return [torch.from_numpy(chosen[a:b] - frame * per_frame) for frame, (a, b) in enumerate(pairwise(edges))]


def pixels(
    components: Float[Tensor, "patches dim"], grid: tuple[int, int], size: int, chosen: Int[Tensor, " chosen"]
) -> Float[Tensor, "chosen dim"]:
    """Features of some of one frame's `size` x `size` pixels, interpolated bilinearly between the centres of patches."""
    picture = components.T.unflatten(1, grid)[None]
    position = (2 * torch.stack([chosen % size, chosen // size], dim=1) + 1) / size - 1
    return F.grid_sample(picture, position[None, None], mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T


# -- pictures --------------------------------------------------------------------------------------------------------


def draw(path: Path, view: View, matched: Int[Tensor, "frames height width"], offset: int) -> None:
    """Some frames of a clip: their labels above, the matched clusters below."""
    numbers = np.linspace(0, len(view.images) - 1, min(4, len(view.images))).round().astype(int).tolist()
    own = [torch.where(labels > 0, labels - offset, 0).byte().numpy()[numbers] for labels in (view.labels, matched)]
    write_rows(path, [(view.images[numbers], labels) for labels in own])
