"""Semantic correspondence on SPair-71k (https://arxiv.org/abs/1908.10543): PCK of keypoints that are found by similar patches.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

The features of an image are computed once, for all pairs that it is in. A prediction is correct if it lies within alpha times the longer
side of the target object's box (`threshold: image`: of the image), in pixels of the original image; probe3d asks for less than that
instead of at most that. By image: mean over pairs of the pair's share of correct keypoints; by point: share of all keypoints; each over all
pairs, or as the mean of the categories. Papers report different ones of these four: all are in the details.
`PCK@0.1_position` predicts the same relative place in the other image.

    job.out/strip.png       some pairs: their keypoints, and where they were found
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from densewalk.core import distributed
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.keypoints import KeypointPair, read_pairs
from densewalk.data.image_files import read_image
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, fit_size, load_network, require_finite
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.correspondence.readouts import READOUTS, Readout, View, insid3, same_place
from densewalk.evaluations.correspondence.settings import ALPHAS, CorrespondenceSettings
from densewalk.evidence.groups import MeanOfGroups
from densewalk.evidence.statistics import MeanOfUnits, RatioOfSums, Statistic
from densewalk.evidence.units import Units
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network
from densewalk.visualization.matches import Matches, write_match_strip

SHOWN = 8  # pairs in `strip.png`


@dataclass(frozen=True)
class Scored:
    """What was found for a pair.

    predicted: in pixels of the target. error, floor: distances of the prediction and of the same relative place, as shares of the size.
    """

    predicted: Float[np.ndarray, "points 2"]
    error: Float[np.ndarray, " points"]
    floor: Float[np.ndarray, " points"]


def evaluate(settings: CorrespondenceSettings, backbone_path: Path, job: Job) -> Result:
    """Find and score the keypoints of all pairs."""
    settings = settings.resolved()
    pairs = choose_pairs(read_pairs(settings.root, settings.split, settings.layout), settings.pairs_per_category)
    backbone = load_network(settings, backbone_path, job)
    categories: dict[str, list[KeypointPair]] = {}
    for pair in pairs:
        categories.setdefault(pair.category, []).append(pair)
    groups = list(categories.values())
    progress = Progress("correspondence", sum(len(groups[i]) for i in owned([*map(len, groups)])))
    dense = job.cached(backbone.dense, backbone_path, "pairs")
    scored = shared_map(lambda group: match_pairs(backbone, dense, group, settings, job, progress), groups, cost=len)
    progress.close()
    by_name = {
        pair.name: found for group, of_group in zip(groups, scored, strict=True) for pair, found in zip(group, of_group, strict=True)
    }
    found = [by_name[pair.name] for pair in pairs]
    if distributed.rank() == 0:
        write_matches(job.out / "strip.png", pairs, found, settings)
    return summarize(settings, pairs, found)


def describe_data(settings: CorrespondenceSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    pairs = read_pairs(settings.root, settings.split, settings.layout)
    read_image(pairs[0].source)
    images = {image for pair in pairs for image in (pair.source, pair.target)}
    return {"pairs": len(pairs), "images": len(images), "keypoints": sum(len(pair.source_points) for pair in pairs)}


def choose_pairs(pairs: list[KeypointPair], most: int | None) -> list[KeypointPair]:
    """At most so many pairs of each category, the same ones every time, in the list's order; all if None."""
    if most is None:
        return pairs
    kept: set[int] = set()
    for category in dict.fromkeys(pair.category for pair in pairs):
        numbers = [i for i, pair in enumerate(pairs) if pair.category == category]
        kept |= set(np.random.default_rng(20).permutation(numbers)[:most].tolist())
    return [pair for i, pair in enumerate(pairs) if i in kept]


def match_pairs(
    backbone: Network, dense: Dense, pairs: list[KeypointPair], settings: CorrespondenceSettings, job: Job, progress: Progress
) -> list[Scored]:
    """Score the pairs of a category; no image's features are computed twice, and no other category's are in memory."""
    views: dict[Path, View] = {}
    for image in dict.fromkeys(path for pair in pairs for path in (pair.source, pair.target)):
        views[image] = see(backbone, dense, image, settings, job)
    found = []
    for pair in pairs:
        found.append(match(views[pair.source], views[pair.target], pair, settings))
        progress.advance()
    return found


def see(backbone: Network, dense: Dense, path: Path, settings: CorrespondenceSettings, job: Job) -> View:
    """An image's features."""
    image = read_image(path)
    resized, side = resize(image, settings, backbone)
    backbone.require_size(resized.height, resized.width)
    with torch.inference_mode():
        maps = dense(normalize(TF.to_tensor(resized), backbone.statistics)[None].to(job.device))
    require_finite(maps, [path], backbone.source)
    return View(maps[0].float(), image.width, image.height, side)


def resize(image: Image.Image, settings: CorrespondenceSettings, backbone: Network) -> tuple[Image.Image, int | None]:
    """The image as the read-out's code gives it to the network, and the padded square's side in original pixels, if it is padded.

    own: bicubic, short side of `size`, both sides rounded to patches. dift, insid3: bicubic, squeezed to a square. probe3d: white to the
    right and below up to a square, then bicubic.
    """
    assert settings.size is not None
    if settings.readout == "own":
        scale = settings.size / min(image.size)
        width, height = (max(1, round(side * scale / backbone.multiple)) * backbone.multiple for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC), None
    size, side = fit_size(settings.size, backbone), None
    if settings.readout == "probe3d":
        side = max(image.size)
        padded = Image.new("RGB", (side, side), "white")
        padded.paste(image, (0, 0))
        image = padded
    return image.resize((size, size), Image.Resampling.BICUBIC), side


def match(source: View, target: View, pair: KeypointPair, settings: CorrespondenceSettings) -> Scored:
    """Find and score the keypoints of a pair."""
    readout: Readout = READOUTS[settings.readout]
    if settings.readout == "insid3":
        readout = partial(insid3, window=settings.window, temperature=settings.temperature)
    points = torch.from_numpy(pair.source_points).float().to(target.maps.device)
    with torch.inference_mode():
        predicted, floor = (_array(predict(source, target, points)) for predict in (readout, same_place))
    sides = pair.box[2:] - pair.box[:2] if settings.threshold == "bbox" else np.array(pair.target_size)
    errors = [np.linalg.norm(p - pair.target_points, axis=1) / sides.max() for p in (predicted, floor)]
    return Scored(predicted, *errors)


def _array(x: Tensor) -> Float[np.ndarray, "points 2"]:
    return x.cpu().numpy().astype(np.float64)


def is_correct(error: Float[np.ndarray, " points"], alpha: float, settings: CorrespondenceSettings) -> Bool[np.ndarray, " points"]:
    """Whether each prediction is near enough."""
    return error < alpha if settings.readout == "probe3d" else error <= alpha


def summarize(settings: CorrespondenceSettings, pairs: list[KeypointPair], found: list[Scored]) -> Result:
    """The metrics in percent, and all four averages of each threshold."""
    total = np.array([len(pair.source_points) for pair in pairs])
    names = np.array([pair.category for pair in pairs])
    chosen = (settings.average or "image", settings.over or "pairs")
    averages: dict[str, dict[str, float]] = {}
    metrics: dict[str, float] = {}
    statistics: dict[str, Statistic] = {}
    kinds = {f"PCK@{alpha:g}": (alpha, [one.error for one in found]) for alpha in ALPHAS}
    for metric, (alpha, errors) in {**kinds, "PCK@0.1_position": (0.1, [one.floor for one in found])}.items():
        correct = np.array([int(is_correct(error, alpha, settings).sum()) for error in errors])
        metrics[metric] = four_averages(correct, total, names)[chosen]
        averages[metric] = {f"by {a} over {o}": value for (a, o), value in four_averages(correct, total, names).items()}
        statistics[metric] = statistic_of(correct, total, names, *chosen)
    at_once = np.array([int(is_correct(one.error, 0.1, settings).sum()) for one in found])
    viewpoints = np.array([-1 if pair.viewpoint is None else pair.viewpoint for pair in pairs])
    details: dict[str, Any] = {
        "keypoints": int(total.sum()),
        "averages": averages,
        "PCK@0.1_by_category": grouped(at_once, total, names),
        "PCK@0.1_by_viewpoint": grouped(at_once, total, viewpoints),
    }
    units = Units([pair.name for pair in pairs], "pair", statistics)
    order = {metric: metrics[metric] for metric in settings.METRICS}
    return Result(metrics=order, n=len(pairs), unit="pairs", details=details, units=units)


def statistic_of(
    correct: Shaped[np.ndarray, " pairs"],
    total: Shaped[np.ndarray, " pairs"],
    categories: Shaped[np.ndarray, " pairs"],
    average: str,
    over: str,
) -> Statistic:
    """The average, pair by pair."""
    if over == "pairs":
        return MeanOfUnits(correct / total, 100.0) if average == "image" else RatioOfSums(correct, total, 100.0)
    group = np.unique(categories, return_inverse=True)[1]
    if average == "point":
        return MeanOfGroups(group, correct, total, 100.0)
    return MeanOfGroups(group, correct / total, np.ones(len(total)), 100.0)


def four_averages(
    correct: Shaped[np.ndarray, " pairs"], total: Shaped[np.ndarray, " pairs"], categories: Shaped[np.ndarray, " pairs"]
) -> dict[tuple[str, str], float]:
    """PCK in percent by image and by point, over all pairs and as the mean of the categories."""
    by = {"image": lambda c, t: (c / t).mean(), "point": lambda c, t: c.sum() / t.sum()}
    found = {}
    for average, score in by.items():
        found[average, "pairs"] = 100 * float(score(correct, total))
        of_categories = [score(correct[categories == one], total[categories == one]) for one in np.unique(categories)]
        found[average, "categories"] = 100 * float(np.mean(of_categories))
    return found


def grouped(
    correct: Shaped[np.ndarray, " pairs"], total: Shaped[np.ndarray, " pairs"], groups: Shaped[np.ndarray, " pairs"]
) -> dict[str, dict[str, float]]:
    """PCK of each group, by image and by point."""
    found = {}
    for one in np.unique(groups):
        values = four_averages(correct[groups == one], total[groups == one], groups[groups == one])
        found[str(one)] = {average: round(values[average, "pairs"], 4) for average in ("image", "point")}
    return found


def write_matches(path: Path, pairs: list[KeypointPair], found: list[Scored], settings: CorrespondenceSettings) -> None:
    """Write some pairs, spread over the list, with lines from each keypoint to where it was found."""
    shown = sorted({round(i) for i in np.linspace(0, len(pairs) - 1, SHOWN)})
    matches = []
    for i in shown:
        right = is_correct(found[i].error, 0.1, settings)
        title = f"{pairs[i].category}: {right.sum()} of {len(right)} right"
        images = [np.asarray(read_image(path)) for path in (pairs[i].source, pairs[i].target)]
        matches.append(Matches(title, images[0], images[1], pairs[i].source_points, found[i].predicted, pairs[i].target_points, right))
    write_match_strip(path, matches)
