"""Video object segmentation on YouTube-VOS and MOSE: objects whose masks are given once are followed along frozen features.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Labels are propagated as for DAVIS (ops/label_propagation.py). An object that enters later is given by its mask in its first frame: its
pixels override what was propagated there, and from then on it is propagated with the others. Where every frame has a mask, predictions
are scored (scores.py); else there are no numbers but what the benchmark's server needs. The given masks, copied to every later frame,
are a floor.

    job.out/Annotations/{video}/{frame}.png     predictions, palette PNGs with the objects' own numbers
    job.out/submission.zip                      the same for the server, where nothing is scored here; YouTube-VOS: in Annotations/
    job.out/{video}.png                         some frames, the true objects above where they are known

Sources: YouTube-VOS (https://arxiv.org/abs/1809.03327), MOSE (https://arxiv.org/abs/2302.01872), DINOv3 (https://arxiv.org/abs/2508.10104).
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import LabelledVideo, Masks, write_labels, zip_labels
from densewalk.data.benchmarks.video_tasks import VideoTask, list_mose, list_youtube_tasks, read_meta
from densewalk.evaluations.common.base import Job, Result, load_network
from densewalk.evaluations.common.label_propagation import Propagation, reduce_mask
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.video_objects.scores import score_objects
from densewalk.evaluations.video_objects.settings import MoseSettings, VideoObjectsSettings, YouTubeVosSettings
from densewalk.evidence.runs import mean_of_runs
from densewalk.evidence.statistics import MeanOfUnits, Statistic
from densewalk.evidence.units import Units
from densewalk.models.interface import Network
from densewalk.visualization.strips import write_strip

log = logging.getLogger("densewalk")
AnyObjects = Float[np.ndarray, "_ 2"]
LEAST = {"youtube_vos": 2, "davis": 3, "mose": 3, "vos_benchmark": 3}
"""Frames from the first given mask on that a video needs, by the rule of scoring."""


def evaluate(settings: VideoObjectsSettings, backbone_path: Path, job: Job) -> Result:
    """Follow the objects of every video; predictions and images go to `job.out`."""
    settings = settings.resolved()
    tasks = find_tasks(settings)
    scored = are_scored(tasks)
    backbone = load_network(settings, backbone_path, job)
    progress = Progress(settings.TABLE, sum(len(tasks[i]) for i in owned([*map(len, tasks)])))

    def follow_and_score(task: VideoTask) -> tuple[AnyObjects, AnyObjects]:
        prediction = segment(backbone, task, settings, progress)
        written = prediction[list(task.written)]
        write_labels(job.out / "Annotations" / task.name, task.as_in_masks(written), [task.video.frames[n].stem for n in task.written])
        shown = LabelledVideo(task.name, [task.video.frames[n] for n in task.written], [])
        if not scored:
            write_strip(job.out / f"{task.name}.png", shown, [written])
            nothing = np.full((len(task.entries), 2), math.nan)
            return nothing, nothing
        truth = task.truth()
        write_strip(job.out / f"{task.name}.png", shown, [truth, written])
        first = [task.written.index(entry.first) for entry in task.entries]
        floor = copy_given(task)[list(task.written)]
        own, copied = (score_objects(rule_of(settings), truth, labels, first) for labels in (written, floor))
        return own, copied

    found = shared_map(follow_and_score, tasks, cost=len)
    progress.close()
    if not scored and distributed.rank() == 0:
        top = "Annotations" if isinstance(settings, YouTubeVosSettings) else ""
        zip_labels(job.out / "submission.zip", job.out / "Annotations", [task.name for task in tasks], top)
    return summarize(settings, tasks, *map(list, zip(*found, strict=True)))


def describe_data(settings: VideoObjectsSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    tasks = find_tasks(settings.resolved())
    are_scored(tasks)
    return {"videos": len(tasks), "frames": sum(map(len, tasks)), "objects": sum(len(task.entries) for task in tasks)}


def rule_of(settings: VideoObjectsSettings) -> str:
    """How objects are scored."""
    assert isinstance(settings, YouTubeVosSettings | MoseSettings)
    return settings.scoring


def find_tasks(settings: VideoObjectsSettings) -> list[VideoTask]:
    """The videos, checked, with as many frames as scoring needs."""
    fifth = settings.choice == "fifth"
    if isinstance(settings, YouTubeVosSettings):
        first_only = settings.objects == "first"
        tasks = list_youtube_tasks(settings.root, settings.split, only=settings.sequences, fifth=fifth, first_only=first_only)
    else:
        tasks = list_mose(settings.root, settings.split, only=settings.sequences, fifth=fifth)
    rule = rule_of(settings)
    for task in tasks:
        if len(task.written) < LEAST[rule]:
            folder = task.video.frames[0].parent
            raise UserError(f"{folder} has {len(task.written)} frames to predict, of which scoring as {rule} needs {LEAST[rule]}")
    return tasks


def are_scored(tasks: Sequence[VideoTask]) -> bool:
    """True where all videos have a mask for every predicted frame, False where they have those of entering objects alone.

    Raises:
        UserError: some have more than those, but not all: a part of the set would be scored.
    """
    incomplete = [task for task in tasks if not task.complete]
    if not incomplete:
        return True
    if any(not set(task.masks) <= task.entering for task in tasks):
        missing = incomplete[0].video.frames[next(n for n in incomplete[0].written if n not in incomplete[0].masks)]
        raise UserError(
            f"{missing} has no mask, but other frames have",
            allowed="masks for every frame of every video, or only for those in which objects enter",
            todo="download the annotations again",
        )
    return False


@torch.inference_mode()
def segment(backbone: Network, task: VideoTask, settings: VideoObjectsSettings, progress: Progress) -> Masks:
    """Labels of every frame, objects being numbered 1, 2, ...; background before the first one enters."""
    given, start = task.given(), task.start
    video = LabelledVideo(task.name, task.video.frames[start:], [])
    first = given[start]
    propagation = Propagation(backbone, video, first.shape, settings, progress)
    small = {
        frame - start: reduce_mask(mask, propagation.grid, keep_small_objects=bool(settings.keep_small_objects))
        for frame, mask in given.items()
    }
    later = {number: labels for number, labels in small.items() if number}
    labels = [np.zeros_like(first)] * start + [first]
    for frame, predicted in enumerate(propagation.labels(small[0], later=later, objects=len(task.entries)), start=start + 1):
        labels.append(np.where(given[frame] > 0, given[frame], predicted) if frame in given else predicted)
    return np.stack(labels)


def copy_given(task: VideoTask) -> Masks:
    """The given masks copied to every later frame, those of later objects on top."""
    given = task.given()
    labels, current = [], np.zeros_like(given[task.start])
    for frame in range(len(task)):
        if frame in given:
            current = np.where(given[frame] > 0, given[frame], current)
        labels.append(current)
    return np.stack(labels)


def summarize(
    settings: VideoObjectsSettings, tasks: Sequence[VideoTask], own: Sequence[AnyObjects], floors: Sequence[AnyObjects]
) -> Result:
    """Means over the objects of all videos in percent, and every object's own values."""
    objects, copied = np.concatenate(own), np.concatenate(floors)
    values = {"J&F": objects.mean(1), "J": objects[:, 0], "F": objects[:, 1], "J&F_copied": copied.mean(1), "J_copied": copied[:, 0]}
    categories = [entry.category for task in tasks for entry in task.entries]
    details: dict[str, Any] = {"videos": len(tasks), "scored": not np.isnan(objects).all()}
    details["objects_without_frames"] = int(np.isnan(objects[:, 0]).sum()) if details["scored"] else 0
    statistics: dict[str, Statistic] = {}
    if isinstance(settings, YouTubeVosSettings):
        seen = np.isin(categories, seen_categories(settings))
        groups = [("seen", seen), ("unseen", ~seen)]
        parts = {f"{kind}_{name}": np.where(chosen, values[kind], math.nan) for name, chosen in groups for kind in "JF"}
        values |= parts
        details["objects_seen"] = int(seen.sum())
        if not any(np.isnan(part).all() for part in parts.values()):
            statistics["G"] = mean_of_runs([MeanOfUnits(part, scale=100.0) for part in parts.values()])
    statistics |= {metric: MeanOfUnits(found, scale=100.0) for metric, found in values.items() if not np.isnan(found).all()}
    metrics = {metric: statistics[metric].score if metric in statistics else math.nan for metric in settings.METRICS}
    names = [(task.name, f"{task.name}/{entry.number}") for task in tasks for entry in task.entries]
    details["objects"] = by_object([name for _, name in names], objects)
    units = Units([unit for _, unit in names], "object", statistics, [video for video, _ in names], "video") if statistics else None
    return Result(metrics, len(objects), "objects", details, units)


def seen_categories(settings: YouTubeVosSettings) -> list[str]:
    """Categories of the training set; none where nobody says them."""
    if settings.seen is not None:
        return settings.seen
    path = Path(settings.root) / "train" / "meta.json"
    if not path.is_file():
        log.warning("%s does not exist, and `seen` is not given: no category is known to be seen, and G has no value", path)
        return []
    return sorted({thing.category for video in read_meta(path).videos.values() for thing in video.objects.values()})


def by_object(names: Sequence[str], values: Float[np.ndarray, "objects 2"]) -> dict[str, dict[str, float]]:
    """J and F in percent of every object that has a value."""
    return {name: {"J": 100 * j, "F": 100 * f} for name, (j, f) in zip(names, values.tolist(), strict=True) if not math.isnan(j + f)}
