"""Zero-shot box tracking on GOT-10k's layout: our own protocol, for which nothing is published.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

The first frame's box is filled to a mask, the mask is propagated along frozen features as for DAVIS, and each frame's mask becomes
a box again. Nothing is trained. DoRA's and other papers' trackers have a trained head: do not compare.

Scored as by GOT-10k's toolkit (https://arxiv.org/abs/1810.11981): the first frame and frames whose object is hidden (cover 0,
or absent) do not count; both boxes are clipped to the image; AO is the mean IoU over the frames of all sequences together, SR
the share of them with IoU > 0.5 and > 0.75. `AO_sequences` is the mean over sequences. A frame without any pixel of the object
keeps the box of the frame before.

    job.out/{sequence}.txt      predicted boxes, x,y,width,height, one line per frame
    job.out/{sequence}.png      some frames: true box blue, predicted box orange
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image
from scipy import ndimage

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.boxes import Track, clip, iou, read_tracks
from densewalk.data.benchmarks.video_objects import LabelledVideo
from densewalk.evaluations.common.base import Job, Result, load_network
from densewalk.evaluations.common.label_propagation import Propagation, reduce_mask
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.tracking.settings import TrackingSettings
from densewalk.evidence.statistics import MeanOfUnits, RatioOfSums, Statistic
from densewalk.evidence.units import Units
from densewalk.models.interface import Network
from densewalk.visualization.overlays import FOUND_COLOR, TRUE_COLOR, with_boxes

SHOWN, WIDTH = 4, 320  # frames in an image, and their width in pixels


def evaluate(settings: TrackingSettings, backbone_path: Path, job: Job) -> Result:
    """Track and score every sequence; boxes and images go to `job.out`."""
    tracks = find_tracks(settings)
    backbone = load_network(settings, backbone_path, job)
    progress = Progress("tracking", sum(len(tracks[i]) for i in owned([*map(len, tracks)])))

    def follow_and_score(track: Track) -> Float[np.ndarray, " scored"]:
        found = propagate_box(backbone, track, settings, progress)
        write_boxes(job.out / f"{track.name}.txt", found)
        write_strip(job.out / f"{track.name}.png", track, found)
        return score(track, found)

    overlaps = shared_map(follow_and_score, tracks, cost=len)
    progress.close()
    return summarize(dict(zip([track.name for track in tracks], overlaps, strict=True)))


def describe_data(settings: TrackingSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    tracks = find_tracks(settings)
    return {"sequences": len(tracks), "frames": sum(map(len, tracks))}


def find_tracks(settings: TrackingSettings) -> list[Track]:
    """The chosen sequences; each must have something to track and something to score."""
    tracks = read_tracks(settings.root, settings.split, settings.sequences)
    for track in tracks:
        path = track.frames[0].parent / "groundtruth.txt"
        if not rasterize(track.boxes[0], *track.size).any():
            raise UserError(f"{path}, line 1: the box covers no pixel of {track.frames[0]}", todo="the first box says what to follow")
        if not track.visible[1:].any():
            raise UserError(f"{track.frames[0].parent} shows its object in no frame but the first", todo="leave the sequence out")
    return tracks


@torch.inference_mode()
def propagate_box(backbone: Network, track: Track, settings: TrackingSettings, progress: Progress) -> Float[np.ndarray, "frames 4"]:
    """The box of every frame; the first one is the true one."""
    mask = rasterize(track.boxes[0], *track.size)
    propagation = Propagation(backbone, LabelledVideo(track.name, track.frames, []), mask.shape, settings, progress)
    boxes = [track.boxes[0]]
    for labels in propagation.labels(reduce_mask(mask, propagation.grid, keep_small_objects=True)):
        boxes.append(box_of(labels > 0, settings, boxes[-1]))
    return np.stack(boxes)


def rasterize(box: Float[np.ndarray, "4"], width: int, height: int) -> UInt8[np.ndarray, "height width"]:
    """1 where a pixel's center lies inside the box, else 0."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))
    return inside.astype(np.uint8)


def box_of(mask: Bool[np.ndarray, "height width"], settings: TrackingSettings, before: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """The box of the object's pixels; `before` where there are none."""
    if not mask.any():
        return before
    if settings.box == "quantile":
        (left, right), (top, bottom) = (quantiles(mask.sum(axis), settings.tail) for axis in (0, 1))
        return np.array([left, top, right, bottom])
    labels, _ = ndimage.label(mask)
    rows, columns = ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float64)


def quantiles(counts: Shaped[np.ndarray, " positions"], tail: float) -> tuple[float, float]:
    """The `tail` and 1 - `tail` quantiles of the pixels' positions, moved apart to the ends of a uniform bar with these quantiles."""
    shares = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
    low, high = np.interp([tail, 1 - tail], shares, np.arange(len(shares), dtype=np.float64))
    more = tail * (high - low) / (1 - 2 * tail)
    return float(low - more), float(high + more)


def score(track: Track, found: Float[np.ndarray, "frames 4"]) -> Float[np.ndarray, " scored"]:
    """IoU of every frame but the first in which the object is visible."""
    truth, found = (clip(boxes, *track.size) for boxes in (track.boxes, found))
    return iou(truth, found)[1:][track.visible[1:]]


def summarize(overlaps: dict[str, Float[np.ndarray, " _"]]) -> Result:
    """Pooled over frames, in percent, and each sequence's own values."""
    pooled = np.concatenate(list(overlaps.values()))
    metrics = {**rates(pooled), "AO_sequences": 100 * float(np.mean([values.mean() for values in overlaps.values()]))}
    details = {"sequences": {name: rates(values) | {"frames": len(values)} for name, values in overlaps.items()}}
    return Result(metrics=metrics, n=len(pooled), unit="frames", details=details, units=sequence_units(overlaps))


def sequence_units(overlaps: dict[str, Float[np.ndarray, " _"]]) -> Units:
    """What the metrics are made of: each sequence's sum over its frames."""
    values = list(overlaps.values())
    frames = np.array([len(v) for v in values])
    sums = {"AO": np.array([v.sum() for v in values])}
    sums |= {f"SR_{percent}": np.array([(v > percent / 100).sum() for v in values]) for percent in (50, 75)}
    statistics: dict[str, Statistic] = {metric: RatioOfSums(total, frames, scale=100.0) for metric, total in sums.items()}
    statistics["AO_sequences"] = MeanOfUnits(np.array([v.mean() for v in values]), scale=100.0)
    return Units(list(overlaps), "sequence", statistics)


def rates(overlaps: Float[np.ndarray, " _"]) -> dict[str, float]:
    """AO and success rates in percent."""
    above = {f"SR_{percent}": 100 * float((overlaps > percent / 100).mean()) for percent in (50, 75)}
    return {"AO": 100 * float(overlaps.mean()), **above}


def write_boxes(path: Path, boxes: Float[np.ndarray, "frames 4"]) -> None:
    """Lines of x,y,width,height, as GOT-10k's server takes them."""
    rows = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(",".join(f"{value:.4f}" for value in row) + "\n" for row in rows.tolist()))


def write_strip(path: Path, track: Track, found: Float[np.ndarray, "frames 4"]) -> None:
    """A few frames, evenly spaced, side by side."""
    sequence = LabelledVideo(track.name, track.frames, [])
    numbers = np.linspace(0, len(track) - 1, SHOWN).round().astype(int).tolist()
    truths = [with_boxes(sequence.image(n), track.boxes[n : n + 1], TRUE_COLOR) for n in numbers]
    shown = [with_boxes(image, found[n : n + 1], FOUND_COLOR) for image, n in zip(truths, numbers, strict=True)]
    strip = Image.fromarray(np.concatenate(shown, axis=1))
    strip.thumbnail((SHOWN * WIDTH, strip.height))
    with atomic_write(path) as temporary:
        strip.save(temporary)
