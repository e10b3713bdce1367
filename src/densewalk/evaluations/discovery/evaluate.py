"""Single-object discovery: LOST, TokenCut, and the attention's largest component; scored by CorLoc and Jaccard indices.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

LOST (lost.py) and TokenCut (tokencut.py) take a feature of every patch, the keys of the last block with all heads side by side; the box is
that of the component of their mask with their seed. `attention` keeps the smallest set of patches with 60 % of the CLS token's attention
in one head of the last block, and takes the box of its largest component (DINO-seg in LOST's table); DoRA's protocol takes the mean of
the heads and 80 % (DoRA_ICLR24#5; its data set is not stated). CorLoc is the share of images whose one box overlaps any object's with
IoU >= 0.5, `Jaccard_box` the mean of the best IoU; images without an object are left out. `Jaccard_mask` is DINO's: the best IoU of any
head's mask with each object's mask. DoRA's paper names "Jaccard similarity" without a definition; these are its two readings.
`CorLoc_position` and `Jaccard_box_position` are those of a box around the whole image. Images keep their size; CLS and registers are
not used.

    job.out/boxes.json      every image's box and its IoU
    job.out/strip.png       some images: objects blue, the found box orange

Equal to the released code except for three things. Among patches of equal degree, or equal entries of TokenCut's vector, the first in
reading order comes first here, where the released code leaves the order open. LOST's DINO-seg never considers the last component;
ours does, unless `component_search` is `released`. An IoU of exactly one half is correct here; the released IoU, with 1e-7 added to the
union, is then a little less.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
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
from densewalk.data.benchmarks.boxes import BoxedImage, iou, read_coco_boxes, read_voc_boxes
from densewalk.data.image_files import read_image, read_mask
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, load_network, require_finite
from densewalk.evaluations.common.shares import in_order, owned
from densewalk.evaluations.discovery import tokencut
from densewalk.evaluations.discovery.attention import head_masks, mask_jaccard, top_mass_mask
from densewalk.evaluations.discovery.lost import lost
from densewalk.evaluations.discovery.regions import bounding_box, component_of, largest_component
from densewalk.evaluations.discovery.settings import DiscoverySettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units, image_ids
from densewalk.models.interface import Network
from densewalk.visualization.overlays import write_box_strip

SHOWN = 8  # images in `strip.png`
CORRECT = 0.5  # IoU


@dataclass(frozen=True)
class Found:
    """What was found in an image.

    boxes: one, or one of each of TokenCut's thresholds. image: the box of the whole image. mask_jaccard: NaN unless masks are scored.
    notes: what makes a cut doubtful, of the first threshold.
    """

    boxes: Float[np.ndarray, "thresholds 4"]
    image: Float[np.ndarray, "4"]
    mask_jaccard: float = math.nan
    notes: tuple[str, ...] = ()


def evaluate(settings: DiscoverySettings, backbone_path: Path, job: Job) -> Result:
    """Find and score a box in every image."""
    everything = find_images(settings)
    examples = [example for example in everything if len(example.boxes)]
    if not examples:
        raise UserError(f"none of the {len(everything)} images in {settings.root} has an object", todo="correct the annotations")
    backbone = load_network(settings, backbone_path, job)
    if settings.method == "attention" and settings.head != "mean" and settings.head >= backbone.heads:
        raise UserError(f"head {settings.head}, but the backbone has {backbone.heads}", allowed=f"0 to {backbone.heads - 1}, or mean")
    mine = owned([1] * len(examples))
    found = in_order(dict(zip(mine, discover(backbone, [examples[i] for i in mine], settings, job), strict=True)))
    result, chosen = score(settings, examples, found)
    result.details["images_without_object"] = len(everything) - len(examples)
    if distributed.rank() == 0:
        boxes = np.stack([image.boxes[chosen] for image in found])
        write_predictions(job.out, examples, boxes, best_overlaps(examples, boxes))
    return result


def describe_data(settings: DiscoverySettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    examples = find_images(settings)
    read_image(examples[0].image)
    return {"images": len(examples), "boxes": sum(len(example.boxes) for example in examples)}


def find_images(settings: DiscoverySettings) -> list[BoxedImage]:
    """The images with their objects' boxes."""
    if settings.layout == "voc":
        masks = settings.object_masks if settings.scores_masks else None
        return read_voc_boxes(settings.root, settings.year, settings.split, settings.image_sets, masks)
    annotations = settings.annotations or f"annotations/instances_{settings.images}.json"
    return read_coco_boxes(settings.root, settings.images, annotations, settings.ids)


def best_overlaps(examples: list[BoxedImage], boxes: Float[np.ndarray, "images 4"]) -> Float[np.ndarray, " images"]:
    """The IoU of each image's box with the object that it fits best."""
    return np.array([iou(box, example.boxes).max() for box, example in zip(boxes, examples, strict=True)])


def score(settings: DiscoverySettings, examples: list[BoxedImage], found: list[Found]) -> tuple[Result, int]:
    """The result, and the number of the threshold that it is of."""
    overlaps = [best_overlaps(examples, np.stack([image.boxes[i] for image in found])) for i in range(len(found[0].boxes))]
    rates = [100 * float((of_tau >= CORRECT).mean()) for of_tau in overlaps]
    chosen = 0
    details: dict[str, Any] = {}
    if settings.method == "tokencut":
        by_tau = dict(zip(settings.thresholds, rates, strict=True))
        if settings.taus:
            details["CorLoc_by_tau"] = {f"{tau:g}": by_tau[tau] for tau in sorted(by_tau)}
        if settings.select == "best":
            chosen = settings.thresholds.index(max(settings.taus, key=lambda tau: by_tau[tau]))
            details["tau"] = settings.thresholds[chosen]
        details |= {name: sum(name in image.notes for image in found) for name in ("repeated_eigenvalue", "isolated_seed")}
    floor = best_overlaps(examples, np.stack([image.image for image in found]))
    values = {
        "CorLoc": (overlaps[chosen] >= CORRECT).astype(np.float64),
        "Jaccard_box": overlaps[chosen],
        "Jaccard_mask": np.array([image.mask_jaccard for image in found]),
        "CorLoc_position": (floor >= CORRECT).astype(np.float64),
        "Jaccard_box_position": floor,
    }
    scored = {metric: of_images for metric, of_images in values.items() if not np.isnan(of_images).all()}
    if settings.scores_masks:
        details["images_without_mask"] = int(np.isnan(values["Jaccard_mask"]).sum())
    metrics = {metric: 100 * float(np.nanmean(values[metric])) if metric in scored else math.nan for metric in values}
    statistics = {metric: MeanOfUnits(of_images, scale=100.0) for metric, of_images in scored.items()}
    units = Units(image_ids([example.image for example in examples], settings.root), "image", statistics)
    return Result(metrics=metrics, n=len(examples), unit="images", details=details, units=units), chosen


def write_predictions(
    out: Path, examples: list[BoxedImage], found: Float[np.ndarray, "images 4"], overlaps: Float[np.ndarray, " images"]
) -> None:
    """Write all boxes as JSON, and a strip of some images spread over the set."""
    rows = {
        example.image.name: {"box": box.tolist(), "IoU": round(float(overlap), 4)}
        for example, box, overlap in zip(examples, found, overlaps, strict=True)
    }
    write_json(out / "boxes.json", rows)
    shown = sorted({round(i) for i in np.linspace(0, len(examples) - 1, SHOWN)})
    panels = [
        (f"{examples[i].image.name}  IoU {overlaps[i]:.2f}", np.asarray(read_image(examples[i].image)), examples[i].boxes, found[i])
        for i in shown
    ]
    write_box_strip(out / "strip.png", panels)


def discover(backbone: Network, examples: list[BoxedImage], settings: DiscoverySettings, job: Job) -> Iterator[Found]:
    """What is found in each image, in order."""
    loader = DataLoader(Padded(examples, backbone.multiple, backbone.statistics), batch_size=None, num_workers=job.workers)
    for (image, width, height), example in zip(track(loader, "discovery"), examples, strict=True):
        backbone.require_size(*image.shape[-2:])
        grid = (image.shape[-2] // backbone.stride, image.shape[-1] // backbone.stride)
        with torch.inference_mode():
            x = features(backbone, image[None].to(job.device), settings)
        require_finite(x[None], [example.image], backbone.source)
        match settings.method:
            case "attention":
                yield of_attention(x, settings, example, backbone.stride, width, height)
            case "tokencut":
                yield of_cuts(x, settings, grid, backbone.stride, width, height)
            case "lost":
                mask, seed = lost(x, settings.k_patches)
                box = bounding_box(component_of(mask.reshape(grid), seed), backbone.stride, width, height)
                yield Found(box[None], whole(width, height))


def features(backbone: Network, image: Float[Tensor, "1 3 height width"], settings: DiscoverySettings) -> Float[Tensor, "..."]:
    """The method's input: a feature of each patch [patches, dim], or the CLS token's attention to them [heads, rows, columns]."""
    if settings.method == "attention":
        return backbone.dense_and_attention(image)[1][0]
    if settings.method == "lost":
        return backbone.keys(image)[0]
    if settings.features == "output":
        return backbone.dense(image)[0].flatten(1).T
    return backbone.projections(image, settings.features)[0]


def whole(width: int, height: int) -> Float[np.ndarray, "4"]:
    """The box of the whole image."""
    return np.array([0, 0, width, height], dtype=np.float64)


def of_attention(
    attention: Float[Tensor, "heads rows columns"], settings: DiscoverySettings, example: BoxedImage, patch: int, width: int, height: int
) -> Found:
    """The box of the attention's largest component, and the masks' Jaccard index where the image has objects' masks."""
    chosen = attention.mean(0) if settings.head == "mean" else attention[settings.head]
    mask = top_mass_mask(chosen.flatten(), settings.mass).reshape(chosen.shape)
    box = bounding_box(largest_component(mask, settings.component_search), patch, width, height)
    jaccard = math.nan
    if example.mask is not None:
        objects = read_mask(example.mask, example.image)
        jaccard = mask_jaccard(objects, head_masks(attention, settings.mask_mass, patch, width, height))
    return Found(box[None], whole(width, height), jaccard)


def of_cuts(
    x: Float[Tensor, "patches dim"], settings: DiscoverySettings, grid: tuple[int, int], patch: int, width: int, height: int
) -> Found:
    """The box of TokenCut's component by each threshold."""
    cosines, boxes = tokencut.similarities(x), []
    notes: list[str] = []
    for tau in settings.thresholds:
        graph = tokencut.build_graph(cosines, tau, settings.graph)
        vector, gap = tokencut.second_eigenvector(graph)
        mask, seed = tokencut.partition(vector)
        boxes.append(bounding_box(component_of(mask.reshape(grid), seed), patch, width, height))
        if tau == settings.tau:
            doubtful = {"repeated_eigenvalue": gap < tokencut.REPEATED, "isolated_seed": tokencut.is_isolated(graph, seed)}
            notes = [name for name, holds in doubtful.items() if holds]
    return Found(np.stack(boxes), whole(width, height), notes=tuple(notes))


class Padded(Dataset[tuple[Tensor, int, int]]):
    """Normalized image with zeros below and to the right of it, its width and its height."""

    def __init__(self, examples: list[BoxedImage], multiple: int, statistics: PixelStatistics) -> None:
        self.examples, self.multiple, self.statistics = examples, multiple, statistics

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        image = read_image(self.examples[i].image)
        return pad(image, self.multiple, self.statistics), image.width, image.height


def pad(image: Image.Image, multiple: int, statistics: PixelStatistics) -> Float[Tensor, "3 rows columns"]:
    """Normalize, then pad with zeros, which are the statistics' mean color, to multiples of the patch."""
    return F.pad(normalize(TF.to_tensor(image), statistics), (0, -image.width % multiple, 0, -image.height % multiple))
