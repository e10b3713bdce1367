"""Monocular depth by a linear probe on frozen features: DINOv2's protocol and DINOv3's, on NYUv2, KITTI or SUN RGB-D.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Patch features, in DINOv2's case interpolated to four times their grid, become scores of 256 depths by a linear layer; the predicted
depth is the mean of the depths, weighted by the scores (head.py). The layer is trained by the SigLoss (losses.py) with AdamW
(schedules.py). Whole images are scored, padded by zeros to whole patches, each together with its mirrored self (metrics.py).

    job.out/depth.png           image, true and predicted depth of some scored images
    job.state/training/step-*.pt        head and optimizer: every few minutes, where a signal stopped the training, and at its end

Two floors need no backbone: one number, the mean of all depths in training, and the mean at the pixel's position. An image without a
pixel to score is left out and counted. A list's lines without depth (`None`) are skipped.

Not given in the releases' text and chosen here: weights of DINOv2's layer start from N(0, 0.01) as DINOv3's do, colors change half of
the time in both recipes, and a group of images with fewer than two known pixels has loss 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from densewalk.core.errors import UserError
from densewalk.core.progress import track
from densewalk.data.benchmarks.depth import DepthImage, read_depth
from densewalk.data.image_files import read_image
from densewalk.evaluations.common.base import Job, Result, load_network, training_state
from densewalk.evaluations.depth.data import MeanDepth, WholeImages, list_splits
from densewalk.evaluations.depth.head import DepthHead, at_image, channels, features_of
from densewalk.evaluations.depth.metrics import errors, least_squares, mean_errors, scored_pixels
from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.evaluations.depth.train import Frozen, compute_features, train
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.visualization.depth import DepthRow, write_depth_strip

SHOWN = 4  # images in `depth.png`
FLOORS = ("constant", "position")
Map = Float[Tensor, "height width"]
# image [3, h, w] in 0..1, its example and the size of its depth map -> name of a prediction -> depth in meters
Predict = Callable[[Tensor, DepthImage, tuple[int, int]], Mapping[str, Map]]


def evaluate(settings: DepthSettings, backbone_path: Path, job: Job) -> Result:
    """Train the head on one frozen backbone and score it."""
    settings = settings.resolved()
    training, scored = list_splits(settings)
    floors = MeanDepth(settings, training)
    backbone = load_network(settings, backbone_path, job).requires_grad_(False)
    compute, kind = features_of(settings, backbone), settings.feature_kind
    head = DepthHead(settings, channels(settings, backbone), job.seed).to(job.device)
    cached = {split: job.cached(compute, backbone_path, split, kind) for split in ("training", "validation")}
    whole, frozen = (Frozen(cached[split], backbone) for split in ("validation", "training"))
    if settings.augment != "none":  # random crops are never seen again
        frozen = replace(frozen, compute=compute)

    def look(head: DepthHead) -> float:
        return score(settings, scored, predictor(settings, head, whole, job), job).mean("model")["AbsRel"]

    with training_state(settings, backbone_path, job) as state, deterministic_kernels(job.deterministic, torch.device(job.device)):
        chosen = train(settings, head, frozen, training, state, job, look)
    probe = predictor(settings, head, whole, job)
    found = score(settings, scored, lambda image, example, size: {**probe(image, example, size), **floors.at(size)}, job)
    write_depth_strip(job.out / "depth.png", found.rows)
    return summarize(found, training, scored, chosen, floors)


def describe_data(settings: DepthSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, scored = list_splits(settings.resolved())
    for examples in (training, scored):
        read_image(examples[0].image)
        read_depth(examples[0])
    return {"training images": len(training), "scored images": len(scored)}


def predictor(settings: DepthSettings, head: DepthHead, frozen: Frozen, job: Job) -> Predict:
    """The head's depth of an image, at the size of its depth map."""

    @torch.no_grad()
    def predict(image: Tensor, example: DepthImage, size: tuple[int, int]) -> dict[str, Map]:
        head.eval()
        views = image[None] if settings.flip == "none" else torch.stack([image, image.flip(-1)])
        maps = head(compute_features(frozen, views.to(job.device), [example] * len(views)))
        flipped = None if settings.flip == "none" else maps[1:]
        return {"model": at_image(settings, maps[:1], flipped, size, frozen.patch, (image.shape[-2], image.shape[-1]))[0, 0].cpu()}

    return predict


@dataclass
class Scores:
    """Errors of each image by the name of the prediction, the names of the images, and what is drawn."""

    errors: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    rows: list[DepthRow] = field(default_factory=list)

    def mean(self, name: str) -> dict[str, float]:
        """Mean over the images."""
        return mean_errors(self.errors[name])


def score(settings: DepthSettings, examples: Sequence[DepthImage], predict: Predict, job: Job) -> Scores:
    """The errors of every prediction of every image."""
    low, high = settings.min_depth, settings.max_depth
    assert high is not None
    assert settings.box is not None
    found = Scores()
    shown = {len(examples) * i // SHOWN for i in range(SHOWN)}
    loader = DataLoader(WholeImages(settings, examples), batch_size=None, num_workers=job.workers)
    for i, (image, depth) in enumerate(track(loader, "scored images")):
        true = depth[0]
        mask = scored_pixels(true, low, high, settings.box)
        if not mask.any():
            continue
        for name, predicted in predict(image, examples[i], (true.shape[0], true.shape[1])).items():
            if settings.align == "least_squares":
                scale, shift = least_squares(predicted, true, mask)
                predicted = scale * predicted + shift
            predicted = predicted.clamp(low, high)
            found.errors.setdefault(name, []).append(errors(predicted, true, mask))
            if i in shown and name == "model":
                picture = np.asarray(read_image(examples[i].image))
                found.rows.append(DepthRow(examples[i].name, picture, true.numpy(), predicted.numpy()))
        found.names.append(examples[i].name)
    if not found.names:
        raise UserError(
            f"no pixel of the {len(examples)} scored images in {settings.root} lies between {low:g} and {high:g} m inside the box",
            todo="correct max_depth or box",
        )
    return found


def summarize(
    found: Scores, training: Sequence[DepthImage], scored: Sequence[DepthImage], chosen: dict[str, Any], floors: MeanDepth
) -> Result:
    """Metrics and floors; all other errors in the details."""
    means = {name: in_units(found.mean(name)) for name in ("model", *FLOORS)}
    metrics = {metric: means["model"][metric] for metric in ("RMSE", "AbsRel", "d1")}
    metrics |= {f"{metric}_{floor}": means[floor][metric] for metric in ("RMSE", "AbsRel", "d1") for floor in FLOORS}
    details = {
        "errors": means["model"],
        "floors": {floor: means[floor] for floor in FLOORS},
        "training_mean_depth": floors.constant,
        "head": chosen,
        "training_images": len(training),
        "images_without_depth": len(scored) - len(found.names),
    }
    statistics = {
        metric: MeanOfUnits(np.array([row[metric] for row in found.errors["model"]]), scale=100.0 if metric == "d1" else 1.0)
        for metric in ("RMSE", "AbsRel", "d1")
    }
    return Result(metrics, len(found.names), "images", details, units=Units(found.names, "image", statistics))


def in_units(values: dict[str, float]) -> dict[str, float]:
    """Shares in percent."""
    return {name: 100 * value if name in ("d1", "d2", "d3") else value for name, value in values.items()}
