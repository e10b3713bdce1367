"""Time-Tuning's propagation score: labels of a clip's first frame, propagated to its other frames.

    I_c(o, t) = #{P = o and G = o},  U_c(o, t) = #{P = o or G = o}       in frame t of clip c, P predicted, G true
    J_c(o)    = mean over the frames with U_c(o, t) > 0 of I_c(o, t) / U_c(o, t)
    score     = mean over all clips c and objects o of P in c, the given first frame included

Objects that enter after a clip's first frame are not scored: nobody gives them. Released, I and U are sums over all frames so far, and
J divides by the number of frames in which P shows the object. Source: Time-Tuning (https://arxiv.org/abs/2308.11796) and its released
mask_propagation.py; how labels become pixels is not said there, and is as for DAVIS (common/label_propagation.py).

    job.out/{sequence}.png      frames of the first clip: the labels above, as propagated below
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8

from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.evaluations.common.base import Job, Result, fit_size, load_network
from densewalk.evaluations.common.label_propagation import one_hot, reduce_mask, upsample_labels
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.video_segmentation.clips import Clip, View, find_clips, read_clip
from densewalk.evaluations.video_segmentation.settings import ClipPropagationSettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units
from densewalk.ops.label_propagation import Rule, follow
from densewalk.visualization.strips import write_rows

ObjectScores = dict[int, float]
SHOWN = 4  # frames of a clip


def evaluate(settings: ClipPropagationSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone; pictures go to `job.out`."""
    settings = settings.resolved()
    clips = find_clips(settings)
    if not any(clip.sequence.mask(clip.numbers[0]).any() for clip in clips):
        raise UserError(f"no first frame of the {len(clips)} clips in {settings.root} has an object", todo="choose other sequences")
    backbone = load_network(settings, backbone_path, job)
    size = fit_size(settings.size, backbone)
    progress = Progress("clip_propagation", len(owned([len(clip.numbers) for clip in clips])))

    def score_clip(clip: Clip) -> tuple[ObjectScores, ObjectScores]:
        view = read_clip(backbone, clip, size, size)
        truth = torch.where(view.labels > 0, view.labels - clip.offset, 0).byte().numpy()
        prediction = propagate_clip(view, truth[0], settings)
        if clip.numbers[0] == 0:
            shown = np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).round().astype(int).tolist()
            write_rows(job.out / f"{clip.sequence.name}.png", [(view.images[shown], labels[shown]) for labels in (truth, prediction)])
        progress.advance(clip.sequence.name)
        copied = np.broadcast_to(truth[0], truth.shape)
        own, floor = (
            object_scores(truth, p, running_sums=bool(settings.running_sums), skip_missed_frames=bool(settings.skip_missed_frames))
            for p in (prediction, copied)
        )
        return own, floor

    found = shared_map(score_clip, clips, cost=lambda clip: len(clip.numbers))
    progress.close()
    return summarize(clips, *map(list, zip(*found, strict=True)), size=size)


@torch.inference_mode()
def propagate_clip(
    view: View, first: UInt8[np.ndarray, "size size"], settings: ClipPropagationSettings
) -> UInt8[np.ndarray, "frames size size"]:
    """The labels of every frame of a clip, given the first frame's."""
    rule = Rule(view.grid, settings.radius, settings.top_k, settings.context, settings.temperature)
    small = reduce_mask(first, view.grid, keep_small_objects=True)
    softs = follow(view.features.split(1), one_hot(small), rule)
    sides = (first.shape[0], first.shape[1])
    return np.stack([first, *(upsample_labels(soft[0].unflatten(1, view.grid), sides, sides) for soft in softs)])


def object_scores(
    truth: Integer[np.ndarray, "frames height width"],
    prediction: Integer[np.ndarray, "frames height width"],
    *,
    running_sums: bool = False,
    skip_missed_frames: bool = False,
) -> ObjectScores:
    """J (0..1) of each object that the prediction of a clip shows, by its number; see the module."""
    scores = {}
    for number in np.unique(prediction[prediction > 0]).tolist():
        p, g = prediction == number, truth == number
        intersection, union = (x.sum((1, 2), dtype=np.float64) for x in (p & g, p | g))
        frames = (p if skip_missed_frames else p | g).any((1, 2)).sum()
        if running_sums:
            intersection, union = intersection.cumsum(), union.cumsum()
        scores[number] = float((intersection / np.maximum(union, 1e-8)).sum() / frames)
    return scores


def propagation_score(
    truth: Integer[np.ndarray, "clips frames height width"],
    prediction: Integer[np.ndarray, "clips frames height width"],
    *,
    running_sums: bool = False,
    skip_missed_frames: bool = False,
) -> float:
    """The score (0..1) of several clips; NaN where no prediction shows an object."""
    found = [
        object_scores(g, p, running_sums=running_sums, skip_missed_frames=skip_missed_frames)
        for g, p in zip(truth, prediction, strict=True)
    ]
    values = [score for scores in found for score in scores.values()]
    return float(np.mean(values)) if values else float("nan")


def summarize(clips: Sequence[Clip], own: Sequence[ObjectScores], floor: Sequence[ObjectScores], *, size: int) -> Result:
    """Means over the objects of all clips in percent, and every object's value."""
    names = [
        (clip.sequence.name, f"{clip.sequence.name}/{clip.sequence.frames[clip.numbers[0]].stem}/{number}")
        for clip, scores in zip(clips, own, strict=True)
        for number in scores
    ]
    values = np.array([score for scores in own for score in scores.values()])
    copied = np.array([of_copy[number] for of_copy, scores in zip(floor, own, strict=True) for number in scores])
    statistics = {"propagation_score": MeanOfUnits(values, scale=100.0), "propagation_score_copied": MeanOfUnits(copied, scale=100.0)}
    units = Units([unit for _, unit in names], "object", statistics, [sequence for sequence, _ in names], "sequence")
    metrics = {name: statistic.score for name, statistic in statistics.items()}
    details = {
        "clips": len(clips),
        "input_size": size,
        "objects": {unit: 100 * v for (_, unit), v in zip(names, values.tolist(), strict=True)},
    }
    return Result(metrics, len(values), "objects", details, units)
