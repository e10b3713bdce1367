"""Landmark retrieval: revisited Oxford and Paris with frozen features.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Every image becomes one L2-normalized vector, the CLS token after the final norm (of a network without one `Network.pooled`). Each query
ranks all images by cosine; images that show its landmark should come first. AP by trapezoids, in three difficulties (scores.py); queries
without an image to find are left out of a difficulty's mean. Sources: the revisited benchmark (https://arxiv.org/abs/1803.11285), DINO
(https://arxiv.org/abs/2104.14294, section 4.2.1) and its eval_image_retrieval.py, DINOv3 (https://arxiv.org/abs/2508.10104).

    job.out/ground_truth.json   what the pickle holds, whose sha256 is in the result's details
    job.out/strip.png           some queries with the images that come first

DINOv3's paper does not say how images are resized; here it is Pillow's bicubic filter.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.files import write_json
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import track
from densewalk.data.image_files import read_image
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, load_network, require_finite
from densewalk.evaluations.common.shares import in_order, owned
from densewalk.evaluations.retrieval.data import Box, Landmarks, Query, pixels_of, read_landmarks
from densewalk.evaluations.retrieval.scores import CUTS, DIFFICULTIES, average_precision, positions, precision_at, rank
from densewalk.evaluations.retrieval.settings import RetrievalSettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units, image_ids
from densewalk.models.interface import Network
from densewalk.training.signals import leave_signals_to_parent
from densewalk.visualization.overlays import FOUND_COLOR, TRUE_COLOR
from densewalk.visualization.panels import Panel, write_panels

Rankings = Int[np.ndarray, "queries images"]
SHOWN, FIRST, SIDE = 4, 5, 160  # queries of the strip, images of each, their sides


def evaluate(settings: RetrievalSettings, backbone_path: Path, job: Job) -> Result:
    """Rank the images for every query, and score the rankings."""
    landmarks = find_landmarks(settings)
    backbone = load_network(settings, backbone_path, job)
    boxes = [query.box if settings.crop_query else None for query in landmarks.queries]
    everything = [*((path, None) for path in landmarks.images), *zip((q.path for q in landmarks.queries), boxes, strict=True)]
    mine = owned([1] * len(everything))
    vectors = torch.stack(in_order(dict(zip(mine, describe(backbone, [everything[i] for i in mine], settings, job), strict=True))))
    database, queries = vectors[: len(landmarks.images)], vectors[len(landmarks.images) :]
    rankings = np.stack([rank(database, query) for query in queries])
    if distributed.rank() == 0:
        write_json(job.out / "ground_truth.json", landmarks.ground_truth)
        draw_rankings(job.out / "strip.png", landmarks, rankings)
    return score(settings, landmarks, rankings)


def describe_data(settings: RetrievalSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    landmarks = find_landmarks(settings)
    read_image(landmarks.images[0])
    return {"images": len(landmarks.images), "queries": len(landmarks.queries)}


def find_landmarks(settings: RetrievalSettings) -> Landmarks:
    """The images and queries; with `crop_query`, every query has a box in its image."""
    return read_landmarks(settings.root, settings.layout, crop=settings.crop_query)


def score(settings: RetrievalSettings, landmarks: Landmarks, rankings: Rankings) -> Result:
    """Means over the queries in percent, and every query's average precision."""
    listed = np.broadcast_to(np.arange(rankings.shape[1]), rankings.shape)
    values: dict[str, Float[np.ndarray, " queries"]] = {}
    cuts = {}
    for difficulty in DIFFICULTIES:
        found, floor = (positions_of(difficulty, landmarks.queries, r) for r in (rankings, listed))
        values[f"mAP_{difficulty}"] = np.array([average_precision(p) for p in found])
        values[f"mP10_{difficulty}"] = np.array([precision_at(p, 10) for p in found])
        values[f"mAP_{difficulty}_constant"] = np.array([average_precision(p) for p in floor])
        at = {f"mP{cut}": np.array([precision_at(p, cut) for p in found]) for cut in CUTS}
        cuts[difficulty] = {name: mean(of_queries) for name, of_queries in at.items()}
        cuts[difficulty]["queries"] = int(sum(len(p) > 0 for p in found))
    metrics = {metric: mean(values[metric]) for metric in settings.METRICS}
    scored = {metric: MeanOfUnits(v, scale=100.0) for metric, v in values.items() if not np.isnan(v).all()}
    units = Units(image_ids([query.path for query in landmarks.queries], settings.root), "query", scored)
    details = {"images": len(landmarks.images), "ground_truth_sha256": landmarks.sha256, **cuts}
    return Result(metrics, len(landmarks.queries), "queries", details, units)


def positions_of(difficulty: str, queries: Sequence[Query], rankings: Rankings) -> list[Int[np.ndarray, " _"]]:
    """Where each query's positives stand."""
    positives, junk = DIFFICULTIES[difficulty]
    return [
        positions(ranking, *(np.concatenate([getattr(query, kind) for kind in kinds]) for kinds in (positives, junk)))
        for query, ranking in zip(queries, rankings, strict=True)
    ]


def mean(values: Float[np.ndarray, " queries"]) -> float:
    """In percent over the queries that have a value."""
    return math.nan if np.isnan(values).all() else 100 * float(np.nanmean(values))


def describe(
    backbone: Network, images: Sequence[tuple[Path, Box | None]], settings: RetrievalSettings, job: Job
) -> Iterator[Float[Tensor, " dim"]]:
    """The vector of each image, in order."""
    data = Fitted(images, settings, backbone.statistics)
    loader = DataLoader(data, batch_size=None, num_workers=job.workers, worker_init_fn=leave_signals_to_parent)
    for image, (path, _) in zip(track(loader, "retrieval"), images, strict=True):
        vector = multi_scale(backbone, image[None].to(job.device), settings.scales, path)
        require_finite(vector, [path], backbone.source)
        yield vector[0].cpu()


@torch.inference_mode()
def multi_scale(backbone: Network, image: Float[Tensor, "1 3 height width"], scales: Sequence[float], path: Path) -> Float[Tensor, "1 dim"]:
    """Normalized mean of the vectors of an image in several sizes."""
    vectors = []
    for scale in scales:
        x = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        height, width = (side // backbone.multiple * backbone.multiple for side in x.shape[-2:])
        if not height or not width:
            raise UserError(
                f"{path} has {x.shape[-1]}x{x.shape[-2]} pixels after it was resized, less than a patch",
                allowed=f"sides of at least {backbone.multiple}",
                todo="raise `size`",
            )
        backbone.require_size(height, width)
        vectors.append(backbone.pooled(x[..., :height, :width]))
    return F.normalize(torch.stack(vectors).mean(0), dim=1)


class Fitted(Dataset[Tensor]):
    """Images resized as the settings say, and normalized: [3, height, width]."""

    def __init__(self, images: Sequence[tuple[Path, Box | None]], settings: RetrievalSettings, statistics: PixelStatistics) -> None:
        self.images, self.settings, self.statistics = images, settings, statistics

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        path, box = self.images[i]
        image = read_image(path)
        if box is not None:
            image = image.crop(pixels_of(box, image.size))
        return normalize(TF.to_tensor(fit(image, self.settings.size, self.settings.fit)), self.statistics)


def fit(image: Image.Image, size: int, how: str) -> Image.Image:
    """The image with a longest side of `size`; see `RetrievalSettings.fit`."""
    if how == "thumbnail":
        small = image.copy()
        small.thumbnail((size, size), Image.Resampling.LANCZOS)
        return small
    longest = max(image.size)
    width, height = (max(1, round(side * size / longest)) for side in image.size)
    return TF.center_crop(image.resize((width, height), Image.Resampling.BICUBIC), [size, size])


def draw_rankings(path: Path, landmarks: Landmarks, rankings: Rankings) -> None:
    """Some queries, each with the images that come first: framed by color where they are right, wrong, or junk (without a frame)."""
    shown = sorted({round(i) for i in np.linspace(0, len(landmarks.queries) - 1, SHOWN)})
    rows = []
    for number in shown:
        query = landmarks.queries[number]
        row = [Panel(thumbnail(query.path), f"query {query.path.stem}"[:28])]
        for place in rankings[number][:FIRST].tolist():
            right = place in query.easy or place in query.hard
            color = None if place in query.junk else TRUE_COLOR if right else FOUND_COLOR
            row.append(Panel(thumbnail(landmarks.images[place]), landmarks.images[place].stem[:24], color))
        rows.append(row)
    write_panels(path, rows, {"right": TRUE_COLOR, "wrong": FOUND_COLOR}, width=1.6)


def thumbnail(path: Path) -> np.ndarray:
    """A small square of an image, padded with black."""
    return np.asarray(fit(read_image(path), SIDE, "square"))
