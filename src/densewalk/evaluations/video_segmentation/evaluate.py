"""Unsupervised video segmentation: clusters of frozen patch features, matched to the objects of annotated videos.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Frames are cut to a square. Features of all patches are standardized, projected on their principal components, interpolated to the
pixels and clustered by k-means: of each frame (F), each clip (C), or the whole data set (D). Clusters are matched to labels,
background among them, within the same frame, clip or data set. The mIoU is averaged over frames or clips. With as many clusters as
labels the matching is the Hungarian one; with more (F_over, C_over, D_over) each cluster takes the label that most of its pixels
have, or the one of largest IoU (`many_to_one`). Source: Time-Tuning (https://arxiv.org/abs/2308.11796, section 4) and its released
evaluation.py, clustering.py, metrics.py. The protocol `clip_propagation` is in propagation.py.

    job.out/{sequence}.png      frames of the first clip: the labels above, its clusters (C) below

Choices of ours where the release leaves it to edited lines or to chance: objects keep their number within a video and are classes
of their own in the data set (its in-place renumbering merges some of them); the components are those of the clip for F and C, and
of the data set for D; k-means draws its random points from the job's seed. Scores equal the release's for given clusters.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import track
from densewalk.evaluations.common.base import Job, Result, fit_size, load_network
from densewalk.evaluations.common.shares import by_first, in_order, own_batches, rounds
from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import confusion_matrix, match_clusters, mean_iou, reassign
from densewalk.evaluations.video_segmentation import propagation
from densewalk.evaluations.video_segmentation.clips import Clip, Labels, Points, View, find_clips, read_clip
from densewalk.evaluations.video_segmentation.settings import ClipPropagationSettings, ClipSettings, VideoSegmentationSettings
from densewalk.evidence.matching import Matching
from densewalk.evidence.statistics import MeanOfUnits, Statistic
from densewalk.evidence.units import Units
from densewalk.ops.clustering import POINTS, PrincipalComponents, kmeans
from densewalk.visualization.strips import write_rows

Scores = dict[str, list[float]]


def evaluate(settings: ClipSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone."""
    if isinstance(settings, ClipPropagationSettings):
        return propagation.evaluate(settings, backbone_path, job)
    assert isinstance(settings, VideoSegmentationSettings)
    return score_clusters(settings, backbone_path, job)


def score_clusters(settings: VideoSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Cluster the patches of frames, clips and the data set, and score the clusters."""
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
            views[i] = read_clip(backbone, clips[i], size, settings.dataset_size)
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


def frame_units(clips: Sequence[Clip], scores: Sequence[Scores], statistics: Mapping[str, Statistic]) -> Units:
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


def describe_data(settings: ClipSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    clips = find_clips(settings)
    return {"clips": len(clips), "frames": sum(len(clip.numbers) for clip in clips)}


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
    value, _ = match_and_score(labels, finer, many, settings.matching)
    scores[f"{metric}_over"].append(value)
    if statistics is not None:
        statistics[metric] = frame_counts(labels, maps, count).matched_iou(matching="hungarian", void=absent_background(labels))
        statistics[f"{metric}_over"] = frame_counts(labels, finer, many).matched_iou(matching=settings.matching)
    return matched


def frame_counts(labels: Labels, maps: Labels, clusters: int) -> ImageCounts:
    """Pixels of each label that occurs, background included, in each cluster, frame by frame."""
    values = occurring(labels)
    pairs = zip(torch.searchsorted(values, labels), maps, strict=True)
    return ImageCounts.of([counted(label, cluster, len(values), clusters) for label, cluster in pairs], len(values), clusters)


def occurring(labels: Labels) -> Int[Tensor, " values"]:
    """The labels that occur, and 0."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), labels.flatten()]).unique()


def absent_background(labels: Labels) -> int | None:
    """0 where no pixel is background: it takes no cluster then, as any label that does not occur; else None."""
    return None if bool((labels == 0).any()) else 0


def match_and_score(labels: Labels, maps: Labels, clusters: int, matching: Matching) -> tuple[float, Labels]:
    """mIoU (0..1) over the labels that occur, and the label that each pixel's cluster is matched to; without one it is background."""
    values = occurring(labels)
    confusion = confusion_matrix(torch.searchsorted(values, labels), maps, len(values), clusters)
    void = absent_background(labels)
    assignment = match_clusters(confusion, matching, void)
    return mean_iou(reassign(confusion, assignment), void=void), values[assignment.clamp(min=0)][maps]


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
