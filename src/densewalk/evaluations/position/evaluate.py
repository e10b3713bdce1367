"""Position X-ray: how much of a dense map of features is position. Definitions: ops/position.py.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

A ridge regression predicts each place's row and column from its features. It is fitted on some images and scored on others, never on
other places of the same images. eta^2 and omega^2 are the share of the features' variance that lies between the places of the grid. The
floors of dense scores by position are the setting `features` of the evaluations that have it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import track
from densewalk.data.augmentation.crops import resized_crop
from densewalk.data.image_folder import ImageFolder
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, fit_size, load_network, require_finite
from densewalk.evaluations.position.settings import PositionSettings
from densewalk.evidence.statistics import RatioOfSums
from densewalk.evidence.units import Units, image_ids
from densewalk.models.interface import Network
from densewalk.ops.position import PlaceSums, RidgeSums, total_squares
from densewalk.training.signals import leave_signals_to_parent

BATCH = 8  # images per forward pass


class SquareImages(Dataset[tuple[Tensor, int]]):
    """Normalized image [3, size, size] and number."""

    def __init__(self, images: ImageFolder, size: int, statistics: PixelStatistics) -> None:
        self.images, self.size, self.statistics = images, size, statistics

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i]
        square = resized_crop(image, (0, 0, *image.shape[-2:]), self.size)
        return normalize(square / 255, self.statistics), i


@dataclass(frozen=True)
class Splits:
    """Numbers of the images that the regression is fitted on, and of those that it is scored on."""

    fitted: list[int]
    held_out: list[int]


@dataclass
class Found:
    """What one pass over the images gives; errors: of each held-out image, its squared errors of y and x."""

    places: PlaceSums = field(default_factory=PlaceSums)
    errors: list[Float64[Tensor, "batch 2"]] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)


@torch.inference_mode()
def evaluate(settings: PositionSettings, backbone_path: Path, job: Job) -> Result:
    """Return how much of a backbone's features is position."""
    images = ImageFolder(settings.folder)
    splits = split(settings, images)
    network = load_network(settings, backbone_path, job)
    size = fit_size(settings.input_size, network)
    found = measure(settings, network, SquareImages(images, size, network.statistics), splits, job)
    squares = total_squares(*found.grid).to(found.errors[0].device)
    if not squares.sum():
        raise UserError(f"input_size {settings.input_size} gives a map of one place, {network.stride} px wide", todo="raise input_size")
    errors = torch.cat(found.errors)  # [held_out, 2]
    explained = (squares - errors).cpu().numpy()  # [held_out, 2]
    totals = np.broadcast_to(squares.cpu().numpy(), explained.shape)
    statistics = {
        "R2": RatioOfSums(explained.sum(1), totals.sum(1), 100),
        "R2_row": RatioOfSums(explained[:, 0], totals[:, 0], 100),
        "R2_column": RatioOfSums(explained[:, 1], totals[:, 1], 100),
    }
    held_out = image_ids([images.root / images.names[i] for i in splits.held_out], settings.root)
    shares = found.places.shares()
    metrics = {name: statistic.score for name, statistic in statistics.items()}
    metrics |= {"eta2": 100 * shares.eta2, "omega2": 100 * shares.omega2}
    details = {"input_size": size, "grid": list(found.grid), "fitted_images": len(splits.fitted), "held_out_images": len(splits.held_out)}
    return Result(metrics, n=len(images), unit="images", details=details, units=Units(held_out, "image", statistics))


def describe_data(settings: PositionSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    images = ImageFolder(settings.folder)
    splits, _ = split(settings, images), images[0]
    return {"images to fit on": len(splits.fitted), "held-out images": len(splits.held_out)}


def split(settings: PositionSettings, images: ImageFolder) -> Splits:
    """Every n-th image is held out, the first one is not; UserError if none is left."""
    held_out = list(range(len(images)))[settings.held_out_every - 1 :: settings.held_out_every]
    if not held_out:
        found = f"{len(images)} images in {settings.folder} leave none to hold out"
        raise UserError(found, todo=f"lower held_out_every ({settings.held_out_every}) or give more images")
    return Splits([i for i in range(len(images)) if i not in set(held_out)], held_out)


def measure(settings: PositionSettings, network: Network, images: SquareImages, splits: Splits, job: Job) -> Found:
    """One pass: first the images that the regression is fitted on, then those that it is scored on."""
    found, sums = Found(), RidgeSums()
    for maps in maps_of(network, images, splits.fitted, job, "images to fit on"):
        found.grid = (maps.shape[2], maps.shape[3])
        found.places.add(maps)
        sums.add(maps)
    ridge = sums.fit(settings.ridge)
    for maps in maps_of(network, images, splits.held_out, job, "held-out images"):
        found.places.add(maps)
        found.errors.append(ridge.squared_errors(maps))
    return found


def maps_of(
    network: Network, images: SquareImages, numbers: list[int], job: Job, label: str
) -> Iterator[Float[Tensor, "batch dim rows columns"]]:
    """The features of these images, batch by batch."""
    batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
    loader = DataLoader(images, batch_sampler=batches, num_workers=job.workers, worker_init_fn=leave_signals_to_parent)
    for x, chosen in track(loader, label):
        maps = network.dense(x.to(job.device))
        require_finite(maps, [str(images.images.root / images.images.names[i]) for i in chosen.tolist()], network.source)
        yield maps
