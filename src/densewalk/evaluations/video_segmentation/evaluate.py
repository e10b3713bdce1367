"""Unsupervised video segmentation: clusters of frozen patch features, matched to the objects of annotated videos.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Frames are cut to a square. Features of all patches are standardized, projected on their principal components, interpolated to the
pixels and clustered by k-means: of each frame (F), each clip (C), or the whole data set (D). Clusters are matched to labels,
background among them, within the same frame, clip or data set. The mIoU is averaged over frames or clips. With as many clusters as
labels the matching is the Hungarian one; with more (F_over, C_over, D_over) each cluster takes the label that most of its pixels
have. Source: Time-Tuning (https://arxiv.org/abs/2308.11796, section 4) and its released evaluation.py, clustering.py, metrics.py.

    job.out/{sequence}.png      frames of the first clip: the labels above, its clusters (C) below

Choices of ours where the release leaves it to edited lines or to chance: objects keep their number within a video and are classes
of their own in the data set (its in-place renumbering merges some of them); the components are those of the clip for F and C, and
of the data set for D; k-means draws its random points from the job's seed. Scores equal the release's for given clusters.
"""

from collections.abc import Mapping, Sequence
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

from densewalk.core import distributed
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import track
from densewalk.data.benchmarks.paths import read_list
from densewalk.data.benchmarks.video_objects import LabelledVideo, list_davis, list_youtube_vos
from densewalk.data.images import normalize, read_rgb
from densewalk.evaluations.common.base import Job, Result, fit_size, load_network, require_finite
from densewalk.evaluations.common.shares import by_first, in_order, own_batches, rounds
from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import confusion_matrix, hungarian, many_to_one, mean_iou, reassign
from densewalk.evaluations.video_segmentation.settings import VideoSegmentationSettings
from densewalk.evidence.statistics import MeanOfUnits, Statistic
from densewalk.evidence.units import Units
from densewalk.models.interface import Network
from densewalk.ops.clustering import POINTS, PrincipalComponents, kmeans
from densewalk.visualization.strips import write_rows

Matching = Literal["hungarian", "many_to_one"]
Scores = dict[str, list[float]]
Points = Float[Tensor, "frames patches dim"]
Labels = Int[Tensor, "frames height width"]


def evaluate(settings: VideoSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone."""
    clips = find_clips(settings)
    backbone = load_network(settings, backbone_path, job)
    size = fit_size(settings.size, backbone)
    of_clip: dict[int, Scores] = {}
    views: dict[int, View] = {}
    components = PrincipalComponents()
    own = iter(track(own_batches(range(len(clips))), "video_segmentation"))
    for number in range(rounds(len(clips))):
        sums = {}
        i = next(own, None)
        if i is not None:
            views[i] = read_clip(backbone, clips[i], size, settings)
            of_clip[i] = score_clip(views[i], settings, job, clips[i])
        if number == 0:
            components.begin(by_first(lambda: views[0].features.flatten(0, 1).double().mean(dim=0)))
        if i is not None:
            sums[i] = components.sums_of(views[i].features.flatten(0, 1))
        for each in in_order(sums):
            components.add_sums(each)
    project = components.projection(settings.components)
    parts = distributed.gathered_objects({i: (project(v.features), v.small_labels) for i, v in views.items()})
    every = in_order(of_clip)
    scores = {name: [value for clip in every for value in clip[name]] for name in settings.METRICS}
    of_data_set, statistics = by_first(lambda: score_data_set(parts, views[0].grid, settings, job))
    scores |= of_data_set
    units = frame_units(clips, every, statistics)
    metrics = {name: 100 * float(np.mean(values)) for name, values in scores.items()}
    details = {"clips": len(clips), "input_size": size}
    return Result(metrics=metrics, n=len(scores["F"]), unit="frames", details=details, units=units)


def score_data_set(
    parts: list[dict[int, tuple[Points, Labels]]], grid: tuple[int, int], settings: VideoSegmentationSettings, job: Job
) -> tuple[Scores, dict[str, Statistic]]:
    """D and D_over, from the principal components and small labels of each clip, by number, that the processes have read.

    The second part is what they are made of, frame by frame.
    """
    found = {number: clip for part in parts for number, clip in part.items()}
    points, labels = (torch.cat([found[number][kind] for number in sorted(found)]) for kind in (0, 1))
    scores: Scores = {"D": [], "D_over": []}
    statistics: dict[str, Statistic] = {}
    seeds = derive_seed(job.seed, "D"), derive_seed(job.seed, "D_over")
    add_scores(scores, "D", points, grid, labels, settings.dataset_clusters, settings, seeds, statistics)
    return scores, statistics


def frame_units(clips: Sequence["Clip"], scores: Sequence[Scores], statistics: Mapping[str, Statistic]) -> Units:
    """What the metrics are made of: frames, whole sequences being drawn. A clip's value stands at its first frame.

    Args:
        scores: F and C of each clip. statistics: of D.
    """
    names = [(clip.sequence.name, clip.sequence.frames[n].stem) for clip in clips for n in clip.numbers]
    first = np.cumsum([0, *(len(clip.numbers) for clip in clips[:-1])])
    found = dict(statistics)
    for metric in ("F", "F_over", "C", "C_over"):
        values = [value for of_clip in scores for value in of_clip[metric]]
        of_frames = np.full(len(names), np.nan)
        of_frames[first if metric.startswith("C") else slice(None)] = values
        found[metric] = MeanOfUnits(of_frames, scale=100.0)
    return Units([f"{sequence}/{frame}" for sequence, frame in names], "frame", found, [sequence for sequence, _ in names], "sequence")


def describe_data(settings: VideoSegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    clips = find_clips(settings)
    return {"clips": len(clips), "frames": sum(len(clip.numbers) for clip in clips)}


@dataclass(frozen=True)
class Clip:
    """Some frames of a sequence. offset: the data set's number of the sequence's object 1, less 1."""

    sequence: LabelledVideo
    numbers: list[int]
    offset: int


@dataclass(frozen=True)
class View:
    """The frames of a clip as the backbone takes them. Labels have the data set's numbers; 0 is background."""

    images: UInt8[np.ndarray, "frames size size 3"]
    features: Points
    grid: tuple[int, int]
    labels: Labels
    small_labels: Int[Tensor, "frames small small"]


def find_clips(settings: VideoSegmentationSettings) -> list[Clip]:
    """Every sequence cut into consecutive clips."""
    if settings.layout == "davis":
        year, split = settings.year, settings.split or "val"
        sequences = list_davis(settings.root, year=year, split=split, resolution=settings.resolution, only=settings.sequences)
    else:
        only = settings.sequences
        if settings.sequence_list is not None:
            only = read_list(Path(settings.root) / settings.sequence_list, todo="correct `sequence_list` or download it")
        sequences = list_youtube_vos(settings.root, split=settings.split or "train", only=only)
    clips, offset = [], 0
    for sequence in sequences:
        numbers = list(range(len(sequence)))
        clips += [Clip(sequence, numbers[i : i + settings.frames], offset) for i in range(0, len(numbers), settings.frames)]
        offset += max(int(sequence.mask(number).max()) for number in numbers)
    return clips


@torch.inference_mode()
def read_clip(backbone: Network, clip: Clip, size: int, settings: VideoSegmentationSettings) -> View:
    """Square frames, their features and labels."""
    device, frames = next(backbone.parameters()).device, [clip.sequence.frames[n] for n in clip.numbers]
    images = torch.stack([crop_square(read_rgb(frame), size, InterpolationMode.BILINEAR) for frame in frames])
    maps = backbone.dense(normalize(images.to(device).float() / 255, backbone.statistics))
    require_finite(maps, frames, backbone.source)
    masks = [torch.from_numpy(clip.sequence.mask(n))[None].long() for n in clip.numbers]
    large, small = (
        torch.cat([crop_square(mask, side, InterpolationMode.NEAREST) for mask in masks]) for side in (size, settings.dataset_size)
    )
    return View(
        images=images.permute(0, 2, 3, 1).numpy(),
        features=maps.flatten(2).transpose(1, 2).cpu(),
        grid=(maps.shape[2], maps.shape[3]),
        labels=torch.where(large > 0, large + clip.offset, 0),
        small_labels=torch.where(small > 0, small + clip.offset, 0),
    )


def crop_square(image: Tensor, size: int, interpolation: InterpolationMode) -> Tensor:
    """[channels, height, width] resized to a short side of `size`, and the middle of that."""
    return tv.center_crop(tv.resize(image, [size], interpolation, antialias=True), [size, size])


def score_clip(view: View, settings: VideoSegmentationSettings, job: Job, clip: Clip) -> Scores:
    """F and C of one clip; draw it if it is the first of its sequence."""
    scores: Scores = {name: [] for name in settings.METRICS}
    points = PrincipalComponents(view.features.flatten(0, 1)).project(view.features, settings.components)
    seed = derive_seed(job.seed, clip.sequence.name, clip.numbers[0])
    for i in range(len(points)):
        frame = slice(i, i + 1)
        add_scores(scores, "F", points[frame], view.grid, view.labels[frame], settings.clusters, settings, (seed + i, seed + i))
    matched = add_scores(scores, "C", points, view.grid, view.labels, settings.clusters, settings, (seed, seed))
    if clip.numbers[0] == 0:
        draw_clip(job.out / f"{clip.sequence.name}.png", view, matched, clip.offset)
    return scores


def add_scores(
    scores: Scores,
    metric: str,
    points: Points,
    grid: tuple[int, int],
    labels: Labels,
    many: int,
    settings: VideoSegmentationSettings,
    seeds: tuple[int, int],
    statistics: dict[str, Statistic] | None = None,
) -> Labels:
    """Cluster and score, with as many clusters as labels, matched one to one, and with `many`, matched many to one.

    Args:
        statistics: gets what the values are made of, frame by frame.

    Returns:
        The labels that the clusters of the former are matched to.
    """
    size, count = labels.shape[-1], len(labels.unique())
    maps = cluster_maps(points, grid, size, count, settings, seeds[0])
    value, matched = match_and_score(labels, maps, count, "hungarian")
    scores[metric].append(value)
    finer = cluster_maps(points, grid, size, many, settings, seeds[1])
    value, _ = match_and_score(labels, finer, many, "many_to_one")
    scores[f"{metric}_over"].append(value)
    if statistics is not None:
        statistics[metric] = frame_counts(labels, maps, count).matched_iou(matching="hungarian")
        statistics[f"{metric}_over"] = frame_counts(labels, finer, many).matched_iou(matching="many_to_one")
    return matched


def frame_counts(labels: Labels, maps: Labels, clusters: int) -> ImageCounts:
    """Pixels of each label that occurs, background included, in each cluster, frame by frame."""
    values = occurring(labels)
    pairs = zip(torch.searchsorted(values, labels), maps, strict=True)
    return ImageCounts.of([counted(label, cluster, len(values), clusters) for label, cluster in pairs], len(values), clusters)


def occurring(labels: Labels) -> Int[Tensor, " values"]:
    """The labels that occur, and 0."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), labels.flatten()]).unique()


def match_and_score(labels: Labels, maps: Labels, clusters: int, matching: Matching) -> tuple[float, Labels]:
    """mIoU (0..1) over the labels that occur, and the label that each pixel's cluster is matched to; without one it is background."""
    values = occurring(labels)
    confusion = confusion_matrix(torch.searchsorted(values, labels), maps, len(values), clusters)
    assignment = hungarian(confusion) if matching == "hungarian" else many_to_one(confusion)
    return mean_iou(reassign(confusion, assignment)), values[assignment.clamp(min=0)][maps]


def cluster_maps(
    points: Points, grid: tuple[int, int], size: int, count: int, settings: VideoSegmentationSettings, seed: int
) -> Int[Tensor, "frames {size} {size}"]:
    """k-means over the pixels of all frames together, features being interpolated bilinearly to `size` x `size` pixels.

    Only the features of the pixels that k-means learns from are interpolated. |x - c|^2 - |x|^2 = |c|^2 - 2 x . c is linear in x, so
    that for all pixels it is interpolated itself, for as many centers as there are, instead of 50 components of x.
    """
    chosen = sample_pixels(len(points), size, count * POINTS, seed)
    learned = torch.cat([interpolate_pixels(frame, grid, size, own) for frame, own in zip(points, chosen, strict=True)])
    centers = kmeans(learned, count, seed=seed, iterations=settings.iterations, restarts=settings.restarts)
    squares = centers.square().sum(dim=1)[:, None]
    distances = ((squares - 2 * centers @ frame.T).unflatten(1, grid)[None] for frame in points)
    return torch.cat([F.interpolate(d, (size, size), mode="bilinear").argmin(dim=1) for d in distances])


def sample_pixels(frames: int, size: int, most: int, seed: int) -> list[Int[Tensor, " chosen"]]:
    """At most `most` random pixels of all frames together, as each frame's pixel numbers."""
    per_frame = size * size
    total = frames * per_frame
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(total, most), replace=False))
    edges = np.searchsorted(chosen, np.arange(frames + 1) * per_frame)
    return [torch.from_numpy(chosen[a:b] - frame * per_frame) for frame, (a, b) in enumerate(pairwise(edges))]


def interpolate_pixels(
    points: Float[Tensor, "patches dim"], grid: tuple[int, int], size: int, chosen: Int[Tensor, " chosen"]
) -> Float[Tensor, "chosen dim"]:
    """Features of some of one frame's `size` x `size` pixels, interpolated bilinearly between the centers of patches."""
    maps = points.T.unflatten(1, grid)[None]
    position = (2 * torch.stack([chosen % size, chosen // size], dim=1) + 1) / size - 1
    return F.grid_sample(maps, position[None, None], mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T


def draw_clip(path: Path, view: View, matched: Labels, offset: int) -> None:
    """Some frames of a clip: their labels above, the matched clusters below."""
    numbers = np.linspace(0, len(view.images) - 1, min(4, len(view.images))).round().astype(int).tolist()
    own = [torch.where(labels > 0, labels - offset, 0).byte().numpy()[numbers] for labels in (view.labels, matched)]
    write_rows(path, [(view.images[numbers], labels) for labels in own])
