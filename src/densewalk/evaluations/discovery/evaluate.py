"""Single-object discovery: LOST, and the attention's largest component; scored by CorLoc.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

LOST (https://arxiv.org/abs/2109.14279, section 3) takes the last block's keys of all patches, heads concatenated; the box is that of
its mask's component with the seed. The attention's variant (DINO-seg in LOST's table) keeps the smallest set of patches with 60 % of
the CLS token's attention in one head of the last block, and takes the box of its largest component. CorLoc is the share of images
whose one box overlaps any object's with IoU >= 0.5; images without an object are left out. Images keep their size. CLS and registers
are not used.

    job.out/boxes.json      every image's box, and whether it is right
    job.out/strip.png       some images: objects blue, the found box orange

Equal to the released code except for two things. Among patches of equal degree the first in reading order comes first here, where the
released sort leaves the order open. Its DINO-seg never considers the last component; ours does.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.files import write_json
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import track
from densewalk.data.benchmarks.boxes import BoxedImage, clip, iou, read_coco_boxes, read_voc_boxes
from densewalk.data.image_files import read_image
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, load_network, require_finite
from densewalk.evaluations.common.shares import in_order, owned
from densewalk.evaluations.discovery.settings import DiscoverySettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units, image_ids
from densewalk.models.interface import Network
from densewalk.visualization.overlays import write_box_strip

STRIP = 512  # patches whose similarities to all others exist at once
SHOWN = 8  # images in `strip.png`
CORRECT = 0.5  # IoU


def evaluate(settings: DiscoverySettings, backbone_path: Path, job: Job) -> Result:
    """Find and score a box in every image."""
    everything = find_images(settings)
    examples = [example for example in everything if len(example.boxes)]
    if not examples:
        raise UserError(f"none of the {len(everything)} images in {settings.root} has an object", todo="correct the annotations")
    backbone = load_network(settings, backbone_path, job)
    if settings.method == "attention" and settings.head >= backbone.heads:
        raise UserError(f"head {settings.head}, but the backbone has {backbone.heads}", allowed=f"0 to {backbone.heads - 1}")
    mine = owned([1] * len(examples))
    boxes = discover(backbone, [examples[i] for i in mine], settings, job)
    found = np.stack(in_order(dict(zip(mine, boxes, strict=True))))
    overlaps = np.array([iou(box, example.boxes).max() for box, example in zip(found, examples, strict=True)])
    if distributed.rank() == 0:
        write_predictions(job.out, examples, found, overlaps)
    details = {"images_without_object": len(everything) - len(examples), "mean_IoU": 100 * float(overlaps.mean())}
    right = overlaps >= CORRECT
    ids = image_ids([example.image for example in examples], settings.root)
    units = Units(ids, "image", {"CorLoc": MeanOfUnits(right.astype(np.float64), scale=100.0)})
    return Result(metrics={"CorLoc": 100 * float(right.mean())}, n=len(examples), unit="images", details=details, units=units)


def describe_data(settings: DiscoverySettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    examples = find_images(settings)
    read_image(examples[0].image)
    return {"images": len(examples), "boxes": sum(len(example.boxes) for example in examples)}


def find_images(settings: DiscoverySettings) -> list[BoxedImage]:
    """The images with their objects' boxes."""
    if settings.layout == "voc":
        return read_voc_boxes(settings.root, settings.year, settings.split)
    annotations = settings.annotations or f"annotations/instances_{settings.images}.json"
    return read_coco_boxes(settings.root, settings.images, annotations, settings.ids)


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


def discover(backbone: Network, examples: list[BoxedImage], settings: DiscoverySettings, job: Job) -> Iterator[Float[np.ndarray, "4"]]:
    """The box of each image, in order."""
    loader = DataLoader(Padded(examples, backbone.multiple, backbone.statistics), batch_size=None, num_workers=job.workers)
    for (image, width, height), example in zip(track(loader, "discovery"), examples, strict=True):
        backbone.require_size(*image.shape[-2:])
        grid = (image.shape[-2] // backbone.stride, image.shape[-1] // backbone.stride)
        with torch.inference_mode():
            x = features(backbone, image[None].to(job.device), settings)
        require_finite(x[None], [example.image], backbone.source)
        if settings.method == "lost":
            mask, seed = lost(x, settings.k_patches)
            component = component_of(mask.reshape(grid), seed)
        else:
            component = largest_component(top_mass_mask(x, settings.mass).reshape(grid))
        yield bounding_box(component, backbone.stride, width, height)


def features(backbone: Network, image: Float[Tensor, "1 3 height width"], settings: DiscoverySettings) -> Float[Tensor, "patches ..."]:
    """The method's input: the patches' keys, all heads concatenated, or the CLS token's attention to them in one head."""
    if settings.method == "attention":
        return backbone.dense_and_attention(image)[1][0, settings.head].flatten()
    return backbone.keys(image)[0]


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


def lost(x: Float[Tensor, "patches dim"], k: int) -> tuple[Bool[np.ndarray, " patches"], int]:
    """LOST's mask and its seed.

    A = x @ x.T
    degree = [(A[p] > 0).sum() - (A[p, p] > 0) for p in patches]
    order = stable argsort(degree);  seed = order[0]
    similar = [q for q in order[:k] if A[seed, q] > 0]
    mask = [sum(A[q, p] for q in similar) > 0 for p in patches]
    """
    order = degrees(x).argsort(stable=True)
    seed, candidates = order[0], order[:k]
    similar = candidates[x[candidates] @ x[seed] > 0]
    mask = x @ x[similar].sum(0) > 0
    return mask.cpu().numpy(), int(seed)


def degrees(x: Float[Tensor, "patches dim"]) -> Int[Tensor, " patches"]:
    """How many other patches each one is positively similar to, in strips of the matrix of similarities."""
    counts = torch.cat([(strip @ x.T > 0).sum(1) for strip in x.split(STRIP)])
    return counts - (x.square().sum(1) > 0).long()


def top_mass_mask(attention: Float[Tensor, " patches"], mass: float) -> Bool[np.ndarray, " patches"]:
    """The smallest set of patches with at least `mass` of the attention: in ascending order, those after 1 - mass is passed."""
    values, order = (attention / attention.sum()).sort(stable=True)
    mask = torch.empty_like(order, dtype=torch.bool)
    mask[order] = values.cumsum(0) > 1 - mass
    return mask.cpu().numpy()


def component_of(mask: Bool[np.ndarray, "rows columns"], seed: int) -> Bool[np.ndarray, "rows columns"]:
    """The 4-connected component with the seed; the seed alone where it lies outside the mask (a patch similar to none)."""
    labels, _ = ndimage.label(mask)
    row, column = np.unravel_index(seed, mask.shape)
    if labels[row, column] == 0:
        labels[row, column] = -1
    return labels == labels[row, column]


def largest_component(mask: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The 4-connected component with the most patches, the first of several; all where the mask is empty."""
    labels, count = ndimage.label(mask)
    return labels == 1 + np.bincount(labels.ravel(), minlength=2)[1:].argmax() if count else np.ones_like(mask)


def bounding_box(component: Bool[np.ndarray, "rows columns"], patch: int, width: int, height: int) -> Float[np.ndarray, "4"]:
    """x0, y0, x1, y1 in pixels, clipped to the image."""
    rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
    box = patch * np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return clip(box, width, height)
