"""DAVIS: video object segmentation by propagating labels along frozen features.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

A frame's soft labels are those of its most similar patches in the first frame and the last few (ops/label_propagation.py).
Semi-supervised, the task DINO reports: the first frame's mask is given. J and F of every object are scored on all frames except
the first and the last, void as background. Unsupervised: the first frame's features are clustered by k-means instead (our choice
of proposals). All frames are scored without void, each object with the proposal that the Hungarian method gives it for the largest
sum of mean J and mean F; where there are fewer proposals than objects, empty ones are added. Values are means over *objects*, not
sequences; the first frame's labels, copied to every frame, are a floor.

Sources: DINO (https://arxiv.org/abs/2104.14294, section 4.2.2) and its eval_video_segmentation.py, DAVIS-2017
(https://arxiv.org/abs/1704.00675, https://arxiv.org/abs/1905.00737) and davis2017-evaluation.

    job.out/{sequence}/00000.png ...    predictions, palette PNGs as the DAVIS server takes them (semi-supervised: the first is given)
    job.out/submission.zip              the same, where nothing is scored here (test-dev)
    job.out/{sequence}.png              some frames, the true objects above, the predicted ones below

In both modes of `compat` frames are resized as in the released code: OpenCV's bilinear interpolation, no antialiasing (854 x 480 to
832 x 480). The released code reads a square frame's mask in the other orientation, which changes nothing. The scoring tool's default
task, unsupervised, and its way of reporting result tables found from an earlier run have no counterpart here.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import VOID, LabelledVideo, Masks, list_davis, write_labels, zip_labels
from densewalk.evaluations.common.base import Job, Result, load_network
from densewalk.evaluations.common.label_propagation import Propagation, StoredFrames, reduce_mask, resize_labels
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.davis.settings import DavisSettings
from densewalk.evaluations.metrics.davis import MOST_AT_ONCE, jf, jf_pairs, statistics
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units
from densewalk.models.interface import Network
from densewalk.visualization.strips import write_strip

Scores = Float[np.ndarray, "objects 2 3"]


def evaluate(settings: DavisSettings, backbone_path: Path, job: Job) -> Result:
    """Segment and score every sequence; predictions and images go to `job.out`."""
    (found,) = evaluate_side_by_side([settings], backbone_path, [job])
    return found


def evaluate_side_by_side(every: Sequence[DavisSettings], backbone_path: Path, jobs: Sequence[Job]) -> list[Result]:
    """Segment and score by several settings, sequence by sequence; the features of a frame are computed once for all that need them.

    They are kept, for one sequence at a time, in files of the jobs' folders of state (`StoredFrames`).

    Args:
        every: of the same sequences. jobs: of each; they differ in their folders only.
    """
    every, job = [settings.resolved() for settings in every], jobs[0]
    listed = [find_sequences(settings) for settings in every]
    names = [sequence.name for sequence in listed[0]]
    if any([sequence.name for sequence in sequences] != names for sequences in listed):
        raise UserError("settings that are scored side by side are of other sequences", todo="score them one by one")
    backbone = load_network(every[0], backbone_path, job)
    lengths = [*map(len, listed[0])]
    progress = Progress("davis", len(every) * sum(lengths[i] for i in owned(lengths)))

    def segment_and_score(number: int) -> list[tuple[Scores, Scores]]:
        stored = StoredFrames(job) if len(every) > 1 else None
        parts = zip(every, jobs, listed, strict=True)
        return [score_sequence(backbone, sequences[number], s, own, progress, stored) for s, own, sequences in parts]

    found = shared_map(segment_and_score, range(len(names)), cost=lambda number: lengths[number])
    progress.close()
    for settings, own in zip(every, jobs, strict=True):
        if not settings.scored and distributed.rank() == 0:
            zip_labels(own.out / "submission.zip", own.out, names)
    by_settings = [[of_sequence[i] for of_sequence in found] for i in range(len(every))]
    return [summarize(*(dict(zip(names, scores, strict=True)) for scores in zip(*own, strict=True))) for own in by_settings]


def score_sequence(
    backbone: Network, sequence: LabelledVideo, settings: DavisSettings, job: Job, progress: Progress, stored: StoredFrames | None
) -> tuple[Scores, Scores]:
    """The scores of a sequence, and those of its first labels copied to every frame."""
    prediction = segment(backbone, sequence, settings, job.seed, progress, stored)
    write_labels(job.out / sequence.name, prediction)
    if not settings.scored:
        write_strip(job.out / f"{sequence.name}.png", sequence, [prediction])
        nothing = np.full((int(prediction[0].max()), 2, 3), math.nan)
        return nothing, nothing
    write_strip(job.out / f"{sequence.name}.png", sequence, [sequence.truth(), prediction])
    return score(sequence, prediction, settings), score(sequence, np.broadcast_to(prediction[0], prediction.shape), settings)


def describe_data(settings: DavisSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    sequences = find_sequences(settings.resolved())
    return {"sequences": len(sequences), "frames": sum(map(len, sequences))}


def find_sequences(settings: DavisSettings) -> list[LabelledVideo]:
    """The listed sequences, checked: every file's presence and size, every first mask (unsupervised: every mask)."""
    unsupervised = settings.task == "unsupervised"
    sequences = list_davis(
        settings.root,
        year=settings.year,
        split=settings.split,
        resolution=settings.resolution,
        annotations="Annotations_unsupervised" if unsupervised and settings.year == 2017 else "Annotations",
        only=settings.sequences,
        first_only=not settings.scored,
    )
    for sequence in sequences:
        if unsupervised:
            check_objects(sequence.truth(), f"folder {sequence.masks[0].parent}", "choose sequences that show an object")
            continue
        if len(sequence) < 3:
            raise UserError(f"{sequence.frames[0].parent} has {len(sequence)} frames (*.jpg), but the first and the last are not scored")
        check_objects(sequence.mask(0), f"mask {sequence.masks[0]}", "the first frame's mask must show every object to follow")
    return sequences


def check_objects(labels: Shaped[np.ndarray, "*shape"], where: str, todo: str) -> None:
    """Require the objects 1, 2, ... without gaps: one that is left out would be an object that nothing finds."""
    objects = [i for i in np.unique(labels).tolist() if i > 0]
    if not objects:
        raise UserError(f"{where} has no object", todo=todo)
    if objects != list(range(1, len(objects) + 1)):
        raise UserError(f"{where} has the ids {objects}", allowed="1, 2, ... without gaps (indices of a palette, not greys)")


@torch.inference_mode()
def segment(
    backbone: Network,
    sequence: LabelledVideo,
    settings: DavisSettings,
    seed: int,
    progress: Progress,
    stored: StoredFrames | None = None,
) -> Masks:
    """Mask of every frame, from the first frame's mask or, unsupervised, from its clusters."""
    first = sequence.mask(0)
    assert settings.red_std is not None  # set by `resolved`
    propagation = Propagation(backbone, sequence, first.shape, settings, progress, red_std=settings.red_std, stored=stored)
    if settings.task == "unsupervised":
        small = propose_objects(propagation.first[0], settings.proposals, seed).reshape(propagation.grid)
        first = resize_labels(small, propagation.shape)
    else:
        small = reduce_mask(first, propagation.grid, keep_small_objects=bool(settings.keep_small_objects))
    return np.stack([first, *propagation.labels(small, constant_channel_wins=bool(settings.constant_channel_wins))])


def propose_objects(features: Float[Tensor, "patches dim"], count: int, seed: int) -> UInt8[np.ndarray, " patches"]:
    """Proposals 1 to `count` for objects in one frame: k-means of the normalized features."""
    # scikit-learn is slow to import, and the usual task does without
    from densewalk.ops.clustering import kmeans, nearest_center

    unit = F.normalize(features, dim=-1)
    return (nearest_center(unit, kmeans(unit, count, seed=seed)) + 1).byte().cpu().numpy()


def score(sequence: LabelledVideo, prediction: Masks, settings: DavisSettings) -> Float[np.ndarray, "objects 2 3"]:
    """Mean, recall and decay (0..1) of J and of F for each object."""
    if settings.task == "unsupervised":
        return score_unsupervised(sequence.truth(keep_void=True), prediction)
    return score_semi_supervised(sequence.truth(), prediction)


def score_semi_supervised(truth: Masks, prediction: Masks) -> Float[np.ndarray, "objects 2 3"]:
    """Score the objects of the first true mask on all frames but the first and the last."""
    j, f = jf(truth[1:-1], prediction[1:-1], int(truth[0].max()))
    return np.stack([statistics(j), statistics(f)], axis=1)


def score_unsupervised(truth: Masks, prediction: Masks) -> Float[np.ndarray, "objects 2 3"]:
    """Score all objects of all frames without pixels that are void (255) in the truth.

    Where there are fewer proposals than objects, empty ones are added, as in the official tool: with one of them an object scores 1
    on the frames that do not show it, else 0. A number below the largest that no pixel has is an empty proposal, too.
    """
    void = truth == VOID
    truth, prediction = np.where(void, np.uint8(0), truth), np.where(void, np.uint8(0), prediction)
    objects, proposals = int(truth.max()), int(prediction.max())
    scores = score_pairs(truth, prediction, objects, proposals)
    if proposals < objects:
        empty = score_pairs(truth, np.zeros_like(prediction), objects, 1)
        scores = np.concatenate([scores, empty.repeat(objects - proposals, axis=2)], axis=2)
    columns, rows = linear_sum_assignment(scores.mean(-1).sum(0).T, maximize=True)
    return statistics(scores[:, rows, columns].swapaxes(0, 1)[rows.argsort()])


def score_pairs(truth: Masks, prediction: Masks, objects: int, proposals: int) -> Float[np.ndarray, "2 objects proposals frames"]:
    """J and F of every object with every proposal, for as many objects at once as `jf_pairs` takes."""
    most = MOST_AT_ONCE - proposals
    parts = []
    for first in range(0, objects, most):
        own = np.where((truth > first) & (truth <= first + most), truth - np.uint8(first), np.uint8(0))
        parts.append(np.stack(jf_pairs(own, prediction, min(most, objects - first), proposals)))
    return np.concatenate(parts, axis=1)


def summarize(scores: dict[str, Float[np.ndarray, "_ 2 3"]], floors: dict[str, Float[np.ndarray, "_ 2 3"]]) -> Result:
    """Means over all objects of all sequences, in percent, and every object's own values; floors: of the copied first frame."""
    objects = 100 * np.concatenate(list(scores.values()))
    j, f = objects.mean(axis=0).tolist()
    metrics = {"J&F": (j[0] + f[0]) / 2, "J": j[0], "F": f[0], "J_recall": j[1], "F_recall": f[1], "J_decay": j[2], "F_decay": f[2]}
    floor_j, floor_f = (100 * np.concatenate(list(floors.values()))).mean(axis=0)[:, 0].tolist()
    metrics |= {"J&F_copied": (floor_j + floor_f) / 2, "J_copied": floor_j}
    if np.isnan(objects).all():  # masks are on the server only
        return Result(metrics, len(objects), "objects", {"sequences": {name: len(values) for name, values in scores.items()}})
    details = {"sequences": by_object(scores), "copied": by_object(floors)}
    return Result(metrics, len(objects), "objects", details, object_units(scores))


def object_units(scores: dict[str, Float[np.ndarray, "_ 2 3"]]) -> Units:
    """What the means are made of: each object's values; those of a sequence belong together."""
    objects = np.concatenate(list(scores.values()))
    names = [(name, f"{name}/{number}") for name, values in scores.items() for number in range(1, len(values) + 1)]
    places = {"J": (0, 0), "F": (1, 0), "J_recall": (0, 1), "F_recall": (1, 1), "J_decay": (0, 2), "F_decay": (1, 2)}
    values = {"J&F": objects[:, :, 0].mean(1)} | {metric: objects[:, kind, which] for metric, (kind, which) in places.items()}
    statistics = {metric: MeanOfUnits(of_objects, scale=100.0) for metric, of_objects in values.items()}
    return Units([unit for _, unit in names], "object", statistics, [sequence for sequence, _ in names], "sequence")


def by_object(scores: dict[str, Float[np.ndarray, "_ 2 3"]]) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Every object's values in percent, by their names."""
    names = ("mean", "recall", "decay")
    return {
        name: [{kind: dict(zip(names, row, strict=True)) for kind, row in zip("JF", rows, strict=True)} for rows in (100 * values).tolist()]
        for name, values in scores.items()
    }
