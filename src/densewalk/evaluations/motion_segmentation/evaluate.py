"""Motion segmentation: the object that moves, in each frame of DAVIS-2016, by the generator of a run of method cis.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

The generator gives each pixel's share in one of two sides, from a frame and its flow to the next one. Above 0.1 it is one side. The method
does not say which side the object is: it is the one that covers less than three fifths of the frame's border (models/families/motion.py).
J is the intersection over union with the true object, whose parts are one; of two empty masks it is 1. The first and the last frame are
not scored, as in DAVIS-2016. Nothing is refined, and no component is chosen by what is true.

Floors: the whole frame, and a threshold on the length of the flow, from which the frame's median is taken off, by Otsu's method.

    job.out/{sequence}/00000.png ...    predictions, palette PNGs
    job.out/{sequence}.png              some frames, the true object above, the predicted one below

Source: Yang et al., CVPR 2019 (https://arxiv.org/abs/1901.03360), DAVIS-2016 (Perazzi et al., CVPR 2016).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import LabelledVideo, list_davis, write_labels
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, load_network, require_finite
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.motion_segmentation.settings import MotionSegmentationSettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units
from densewalk.models.families.motion import THRESHOLD, object_side
from densewalk.models.interface import Network
from densewalk.ops.optical_flow import frame_flow
from densewalk.visualization.strips import write_strip

Mask = Bool[np.ndarray, "height width"]
BINS = 256  # of Otsu's histogram


@dataclass(frozen=True)
class Scores:
    """J of each scored frame, 0 to 1: of the prediction and of both floors."""

    model: Float[np.ndarray, " frames"]
    whole: Float[np.ndarray, " frames"]
    flow: Float[np.ndarray, " frames"]


def evaluate(settings: MotionSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Segment and score every sequence; predictions and images go to `job.out`."""
    settings = settings.resolved()
    sequences = find_sequences(settings)
    network = load_network(settings, backbone_path, job)
    progress = Progress("motion_segmentation", sum(len(sequences[i]) for i in owned([*map(len, sequences)])))

    def segment_and_score(sequence: LabelledVideo) -> Scores:
        objects, by_flow = segment(network, sequence, settings, backbone_path, progress)
        truth = sequence.truth()
        write_labels(job.out / sequence.name, objects.astype(np.uint8))
        write_strip(job.out / f"{sequence.name}.png", sequence, [truth, objects.astype(np.uint8)])
        return score(truth > 0, objects, by_flow)

    found = shared_map(segment_and_score, sequences, cost=len)
    progress.close()
    return summarize(settings, {sequence.name: scores for sequence, scores in zip(sequences, found, strict=True)})


def describe_data(settings: MotionSegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    sequences = find_sequences(settings.resolved())
    return {"sequences": len(sequences), "frames": sum(map(len, sequences))}


def find_sequences(settings: MotionSegmentationSettings) -> list[LabelledVideo]:
    """The listed sequences, checked: every file's presence and size, every mask, and that a frame is scored."""
    sequences = list_davis(settings.root, year=2016, split=settings.split, resolution=settings.resolution, only=settings.sequences)
    for sequence in sequences:
        if len(sequence) < 3:
            raise UserError(f"{sequence.frames[0].parent} has {len(sequence)} frames, but the first and the last are not scored")
        sequence.truth()
    return sequences


@torch.inference_mode()
def segment(
    network: Network, sequence: LabelledVideo, settings: MotionSegmentationSettings, source: Path, progress: Progress
) -> tuple[Bool[np.ndarray, "frames height width"], Bool[np.ndarray, "frames height width"]]:
    """The object of each frame, and that of the threshold on flow."""
    size = input_size(network, settings)
    device = next(network.parameters()).device
    objects, by_flow = [], []
    images = {0: sequence.image(0)}
    for number in range(len(sequence)):
        other = number + 1 if number + 1 < len(sequence) else number - 1
        images = {n: images[n] if n in images else sequence.image(n) for n in (number, other)}
        flow = frame_flow(images[number], images[other])
        frame = tv.resize(torch.from_numpy(images[number]).permute(2, 0, 1), list(size), antialias=True)
        small = F.interpolate(torch.from_numpy(flow).permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)
        masks = network.motion_masks(normalize(frame[None].to(device) / 255, network.statistics), small.to(device))
        require_finite(masks, [sequence.frames[number]], source)
        large = F.interpolate(masks.float(), flow.shape[:2], mode="bilinear")[0, 0].cpu().numpy()
        objects.append(object_side(large > THRESHOLD))
        by_flow.append(object_side(moving_pixels(flow)))
        progress.advance(sequence.name)
    return np.stack(objects), np.stack(by_flow)


def input_size(network: Network, settings: MotionSegmentationSettings) -> tuple[int, int]:
    """Height and width of the input: multiples of the patch size."""
    height, width = (max(1, side // network.multiple) * network.multiple for side in (settings.height, settings.width))
    network.require_size(height, width)
    return height, width


def moving_pixels(flow: Float32[np.ndarray, "height width 2"]) -> Mask:
    """Where the flow differs from its median by more than Otsu's threshold."""
    lengths = np.linalg.norm(flow - np.median(flow, axis=(0, 1)), axis=2)
    return lengths > otsu(lengths)


def otsu(values: Float[np.ndarray, "*shape"]) -> float:
    """The threshold that separates two classes best: largest variance between them (Otsu 1979), of 256 bins.

    for each edge between bins:
        variance = share_below * share_above * (mean_below - mean_above)^2
    """
    counts, edges = np.histogram(values, bins=BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = counts.cumsum(), counts.sum()
    sums, above = (counts * middles).cumsum(), total - counts.cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nan_to_num(variance).argmax()])


def score(
    truth: Bool[np.ndarray, "frames h w"], objects: Bool[np.ndarray, "frames h w"], by_flow: Bool[np.ndarray, "frames h w"]
) -> Scores:
    """J of all frames but the first and the last."""
    scored = slice(1, -1)
    model, flow = (np.array([jaccard(*pair) for pair in zip(truth[scored], found[scored], strict=True)]) for found in (objects, by_flow))
    return Scores(model, truth[scored].mean(axis=(1, 2)), flow)


def jaccard(truth: Mask, found: Mask) -> float:
    """Intersection over union; 1 if both are empty."""
    union = np.count_nonzero(truth | found)
    return np.count_nonzero(truth & found) / union if union else 1.0


def summarize(settings: MotionSegmentationSettings, found: dict[str, Scores]) -> Result:
    """J in percent, of the model and the floors, and what it is made of: sequences, or their frames."""
    flat = bool(settings.mean_over_frames)
    kinds = {
        "J": [s.model for s in found.values()],
        "J_whole": [s.whole for s in found.values()],
        "J_flow": [s.flow for s in found.values()],
    }
    values = {name: np.concatenate(own) if flat else np.array([one.mean() for one in own]) for name, own in kinds.items()}
    metrics = {name: 100 * float(own.mean()) for name, own in values.items()}
    statistics = {"J": MeanOfUnits(values["J"], scale=100.0)}
    by_sequence = {
        name: {"J": 100 * s.model.mean(), "J_whole": 100 * s.whole.mean(), "J_flow": 100 * s.flow.mean(), "frames": len(s.model)}
        for name, s in found.items()
    }
    if not flat:
        return Result(metrics, len(found), "sequences", {"sequences": by_sequence}, Units([*found], "sequence", statistics))
    frames = [(name, f"{name}/{number + 1:05d}") for name, s in found.items() for number in range(len(s.model))]
    units = Units([frame for _, frame in frames], "frame", statistics, [name for name, _ in frames], "sequence")
    return Result(metrics, len(frames), "frames", {"sequences": by_sequence}, units)
