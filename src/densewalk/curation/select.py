"""Choose what to train on: images without near duplicates, or like a reference set.

    densewalk curate --spec JSON --backbone FILE --data RECEIPT ... --out results/data/NAME.json

After DINOv2 (https://arxiv.org/abs/2304.07193, section 3, "Data processing"). Every image x of the pool, a frame of a video each
`spacing_seconds` or a file of a folder, is compared by the cosine of L2-normalized CLS tokens f(x) of any backbone:

    duplicates   i ~ j if <f_i, f_j> >= threshold; of every connected component of ~ the first image stays
    samples      of what is left, the k nearest images of each reference stay
    clusters     of what is left, those k-means clusters stay whose center is the nearest of enough references

    results/data/{name}.json    the receipt (jobs/curate.py)
    results/data/{name}.csv     every image of the pool: kept or why not, what it is most similar to and how much
    results/data/{name}.png     pairs of a kept image and one that was dropped for it

All pairs are compared, tile by tile: memory holds the features and one tile. Deviations: the paper finds copies with features trained
for that (SSCD, https://arxiv.org/abs/2202.10261) among 64 neighbors of each image; of a cluster it draws some images, here all stay.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import clock, track
from densewalk.core.text.quoting import for_csv
from densewalk.curation.settings import CurationSettings, RetrievalSettings
from densewalk.data.image_folder import ImageFolder
from densewalk.data.images import normalize
from densewalk.data.receipts import CuratedReceipt, ImagesReceipt, VideoReceipt
from densewalk.data.sources import Source, open_images
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network
from densewalk.ops.clustering import kmeans, nearest_center
from densewalk.ops.cpu.linear import linear
from densewalk.ops.search.nearest_neighbors import nearest
from densewalk.visualization.overlays import contact_sheet
from densewalk.visualization.panels import Panel

log = logging.getLogger("densewalk")
BATCH = 64  # images per forward pass
TILE = 2048  # images that are compared with as many others at once: 16 MiB of similarities
PAIRS = 8  # of each kind on the sheet, in two rows
CHAIN = 0.1  # a group of duplicates with a larger share of the pool is worth a warning


def curate(
    settings: CurationSettings, sources: Sequence[Source], backbone: Network, cls: Dense, out: Path, *, workers: int
) -> CuratedReceipt:
    """Choose, and write the list and the sheet beside the receipt `out`, which is returned.

    Args:
        cls: `backbone.pooled`, or a cache around it.

    Raises:
        UserError: no reference image, features that are not finite, a size that patches do not fill, or nothing left.
    """
    if settings.size % backbone.multiple:
        raise UserError(f"size {settings.size} is no multiple of the patch size", allowed=f"multiples of {backbone.multiple}")
    backbone.require_size(settings.size, settings.size)
    references = ImageFolder(settings.retrieve.source) if settings.retrieve else None
    pools = [Pool(source, settings.spacing_seconds) for source in sources]
    x = compute_features(backbone, cls, ConcatDataset([ResizedImages(pool, settings.size) for pool in pools]), workers, "pool")
    like = compute_features(backbone, cls, ResizedImages(references, settings.size), workers, "references") if references else None
    choice = choose(x, like, settings)
    if not choice.kept.any():
        raise UserError("the curation keeps nothing", todo="lower least_references or raise `neighbours`")
    write_list(out.with_suffix(".csv"), pools, choice, references)
    draw_sheet(out.with_suffix(".png"), pools, choice, references)
    receipt = make_receipt(out.stem, pools, choice)
    counts = receipt.kept, receipt.pictures, receipt.duplicates, receipt.not_retrieved
    log.info("kept %d of %d images: %d duplicates, %d not retrieved", *counts)
    if receipt.largest_group > CHAIN * len(x):
        log.warning("one group of duplicates holds %d of %d images: raise `duplicates` if they differ", receipt.largest_group, len(x))
    return receipt


@dataclass(frozen=True)
class Choice:
    """The fate of each image of a pool.

    first: the first image of its group of duplicates, itself if it is the one; first_similarity: to that one.
    neighbor, neighbor_similarity: the most similar other image. retrieved: None if there are no references.
    reference, reference_similarity: the most similar reference.
    """

    first: Int[np.ndarray, " images"]
    first_similarity: Float[np.ndarray, " images"]
    neighbor: Int[np.ndarray, " images"]
    neighbor_similarity: Float[np.ndarray, " images"]
    retrieved: Bool[np.ndarray, " images"] | None = None
    reference: Int[np.ndarray, " images"] | None = None
    reference_similarity: Float[np.ndarray, " images"] | None = None

    @property
    def unique(self) -> Bool[np.ndarray, " images"]:
        """Images that are no duplicate of an earlier one."""
        return self.first == np.arange(len(self.first))

    @property
    def kept(self) -> Bool[np.ndarray, " images"]:
        """Images to train on."""
        return self.unique if self.retrieved is None else self.unique & self.retrieved


def choose(x: Float[Tensor, "images dim"], references: Float[Tensor, "references dim"] | None, settings: CurationSettings) -> Choice:
    """Group duplicates, then retrieve among what they leave; features are L2-normalized."""
    first, neighbor, similarity = group_duplicates(x, settings.duplicates)
    to_first = (x * x[torch.from_numpy(first).to(x.device)]).sum(dim=1).cpu().numpy()
    if references is None or settings.retrieve is None:
        return Choice(first, to_first, neighbor, similarity)
    left = np.flatnonzero(first == np.arange(len(x)))
    among = retrieve(x[torch.from_numpy(left).to(x.device)], references, settings.retrieve, derive_seed("curation", settings.seed))
    retrieved = np.zeros(len(x), bool)
    retrieved[left[among]] = True
    to_reference, reference = (values[:, 0].cpu().numpy() for values in nearest(references, x, 1))
    return Choice(first, to_first, neighbor, similarity, retrieved, reference, to_reference)


def group_duplicates(
    x: Float[Tensor, "images dim"], threshold: float | None
) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """Find each image's group by its first one, and the most similar other image.

    Its number and similarity are -1 and -2 in a pool of one.

    for i, j with i < j:  if x[i] @ x[j] >= threshold: union(i, j)
    first[i] = min(j for j if find(j) == find(i))

    Args:
        threshold: None joins nothing.
    """
    groups, neighbor, similarity = Groups(len(x)), np.full(len(x), -1), np.full(len(x), -2.0, np.float32)
    for rows, columns in ((r, c) for r in range(0, len(x), TILE) for c in range(r, len(x), TILE)):
        tile = linear(x[rows : rows + TILE], x[columns : columns + TILE])  # on or above the diagonal
        if rows == columns:
            tile.fill_diagonal_(-2.0)
        for at, axis, other in ((rows, 1, columns), (columns, 0, rows)):
            best = tile.max(dim=axis)
            value, index = best.values.cpu().numpy(), best.indices.cpu().numpy() + other
            better = value > similarity[at : at + len(value)]
            similarity[at : at + len(value)][better], neighbor[at : at + len(value)][better] = value[better], index[better]
        if threshold is not None:
            i, j = (tile >= threshold).nonzero().T.cpu().numpy()
            groups.join(i + rows, j + columns)
    return groups.first(), neighbor, similarity


class Groups:
    """Which images belong together: a forest in which each image points to an earlier one of its group, the first one to itself.

    A join touches the images of its pairs alone, so that the work is linear in the pairs, however many images there are.
    """

    def __init__(self, images: int) -> None:
        self.parent = np.arange(images)

    def join(self, i: Int[np.ndarray, " pairs"], j: Int[np.ndarray, " pairs"]) -> None:
        """Join the groups of the images i and j of each pair."""
        a, b = self._first_of(i), self._first_of(j)
        apart = a != b
        firsts, numbers = np.unique(np.concatenate([a[apart], b[apart]]), return_inverse=True)
        if not len(firsts):
            return
        pairs = coo_matrix((np.ones(apart.sum(), bool), tuple(numbers.reshape(2, -1))), shape=(len(firsts), len(firsts)))
        count, component = connected_components(pairs, directed=False)
        smallest = np.full(count, len(self.parent))
        np.minimum.at(smallest, component, firsts)
        self.parent[firsts] = smallest[component]

    def first(self) -> Int[np.ndarray, " images"]:
        """The first image of each one's group."""
        return self._first_of(np.arange(len(self.parent)))

    def _first_of(self, images: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        found = self.parent[images]
        while np.any((above := self.parent[found]) != found):
            found = above
        self.parent[images] = found  # shortens the way for the next call
        return found


def retrieve(
    x: Float[Tensor, "images dim"], references: Float[Tensor, "references dim"], settings: RetrievalSettings, seed: int
) -> Bool[np.ndarray, " images"]:
    """Choose what is like the references.

    samples:   kept = {i for r in references for i in sorted(range(len(x)), key=lambda i: -references[r] @ x[i])[:neighbours]}
    clusters:  hits[c] = sum(c == argmin_c' |references[r] - center[c']| for r in references)
               kept = {i if hits[argmin_c |x[i] - center[c]|] >= least_references}
    """
    if settings.by == "samples":
        kept = np.zeros(len(x), bool)
        kept[nearest(x, references, settings.neighbours)[1].flatten().cpu().numpy()] = True
        return kept
    centers = kmeans(x, settings.clusters, seed=seed)
    hits = torch.bincount(nearest_center(references, centers), minlength=len(centers))
    return (hits >= settings.least_references)[nearest_center(x, centers)].cpu().numpy()


class Pool(Dataset[Tensor]):
    """The images of one source that may be kept; `[i]` is uint8 [3, height, width] RGB.

    numbers: of the frames, or of the images in the order of their names. names: source, and time or file.
    """

    def __init__(self, source: Source, spacing_seconds: float) -> None:
        self.source, receipt, own = source.name, source.receipt, []
        if isinstance(receipt, VideoReceipt):
            step = max(1, round(spacing_seconds * receipt.fps))
            self.numbers = [n for start, end in receipt.usable for n in range(start, end, step)]
            own = [clock(n / receipt.fps) for n in self.numbers]
        elif isinstance(receipt, ImagesReceipt):
            self.numbers = list(range(receipt.files))
        else:
            raise UserError(f"{source.name} is a folder of sequences", allowed="videos and folders of unrelated images")
        self.receipt: VideoReceipt | ImagesReceipt = receipt
        self.images = open_images(Source(source.name, self.keep(np.ones(len(self.numbers), bool))))
        self.names = [f"{self.source} {name}" for name in (self.images.names if isinstance(self.images, ImageFolder) else own)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> UInt8[Tensor, "3 height width"]:
        image = self.images[i]
        return image.reshape(image.shape[-3:])

    def keep(self, chosen: Bool[np.ndarray, " images"]) -> VideoReceipt | ImagesReceipt:
        """Return the source's receipt with the numbers of the chosen images."""
        return self.receipt.model_copy(update={"kept": tuple(n for n, k in zip(self.numbers, chosen, strict=True) if k)})


class ResizedImages(Dataset[Tensor]):
    """Images resized to a square, uint8 [3, size, size]."""

    def __init__(self, images: Pool | ImageFolder, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> UInt8[Tensor, "3 {self.size} {self.size}"]:
        return tv.resize(self.images[i], [self.size, self.size], InterpolationMode.BICUBIC, antialias=True).contiguous()


@torch.inference_mode()
def compute_features(backbone: Network, cls: Dense, images: "Dataset[Tensor]", workers: int, label: str) -> Float[Tensor, "images dim"]:
    """Compute L2-normalized CLS tokens, on the backbone's device.

    Raises:
        UserError: they are not finite.
    """
    device = next(backbone.parameters()).device
    result = torch.empty(len(images), backbone.pooled_dim, device=device)  # type: ignore[arg-type]
    for rows, batch in zip(result.split(BATCH), track(DataLoader(images, BATCH, num_workers=workers), label), strict=True):
        rows.copy_(F.normalize(cls(normalize(batch.to(device) / 255, backbone.statistics)), dim=1))
    if not result.isfinite().all():
        raise UserError(f"the backbone's features of the {label} are not finite", todo="check the run or checkpoint it comes from")
    return result


def make_receipt(name: str, pools: Sequence[Pool], choice: Choice) -> CuratedReceipt:
    """Count what was kept and why not, and add to each source's receipt what is kept of it."""
    kept, unique = choice.kept, choice.unique
    parts = np.split(kept, np.cumsum([len(pool) for pool in pools])[:-1])
    quantiles = np.quantile(choice.neighbor_similarity, [0.05, 0.5, 0.95]).round(4).tolist()
    return CuratedReceipt(
        name=name,
        pictures=len(kept),
        kept=int(kept.sum()),
        duplicates=int((~unique).sum()),
        not_retrieved=int((unique & ~kept).sum()),
        largest_group=int(np.bincount(choice.first).max()),
        neighbour_similarity=dict(zip(("5 %", "50 %", "95 %"), quantiles, strict=True)),
        sources={pool.source: pool.keep(part) for pool, part in zip(pools, parts, strict=True)},
    )


def write_list(path: Path, pools: Sequence[Pool], choice: Choice, references: ImageFolder | None) -> None:
    """Write one line for each image of the pool; images are called `{source} {time or file}`."""
    names = np.array([name for pool in pools for name in pool.names])
    columns: dict[str, Any] = {
        "source": [pool.source for pool in pools for _ in range(len(pool))],
        "number": [number for pool in pools for number in pool.numbers],
        "picture": names,
        "reason": np.where(choice.kept, "kept", np.where(choice.unique, "not retrieved", "duplicate")),
        "duplicate_of": np.where(choice.unique, "", names[choice.first]),
        "similarity": np.where(choice.unique, np.nan, choice.first_similarity),
        "neighbour": np.where(choice.neighbor < 0, "", names[choice.neighbor]),
        "neighbour_similarity": choice.neighbor_similarity,
    }
    if references is not None:
        columns |= {"reference": np.array(references.names)[choice.reference], "reference_similarity": choice.reference_similarity}
    texts = ("source", "picture", "duplicate_of", "neighbour", "reference")
    quoted = {name: [for_csv(cell) for cell in cells] if name in texts else cells for name, cells in columns.items()}
    with atomic_write(path) as temporary:
        pd.DataFrame(quoted).to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")


def draw_sheet(path: Path, pools: Sequence[Pool], choice: Choice, references: ImageFolder | None) -> None:
    """Draw pairs of each kind, the least similar first.

    Kinds: an image and its duplicate; a reference and what it kept; a reference and what it did not.
    """
    images: ConcatDataset[Tensor] = ConcatDataset(pools)
    names = [name for pool in pools for name in pool.names]
    panels = []
    # of each group the duplicate that is least like its first image
    order = np.argsort(choice.first_similarity, kind="stable")
    order = order[~choice.unique[order]]
    for i in _evenly_by(order[np.unique(choice.first[order], return_index=True)[1]], choice.first_similarity):
        panels.append(Panel(_array(images[int(choice.first[i])]), f"kept  {names[choice.first[i]]}", "green"))
        panels.append(Panel(_array(images[i]), f"duplicate {choice.first_similarity[i]:.3f}  {names[i]}", "red"))
    if references is not None and choice.reference is not None and choice.reference_similarity is not None:
        for verdict, color, chosen in (("kept", "green", choice.kept), ("not retrieved", "red", choice.unique & ~choice.kept)):
            for i in _evenly_by(np.flatnonzero(chosen), choice.reference_similarity):
                panels.append(Panel(_array(references[int(choice.reference[i])]), f"reference  {references.names[choice.reference[i]]}"))
                panels.append(Panel(_array(images[i]), f"{verdict} {choice.reference_similarity[i]:.3f}  {names[i]}", color))
    note = f"kept {choice.kept.sum()} of {len(names)} images; numbers are cosine similarities"
    contact_sheet(path, panels or [Panel(_array(images[0]), f"kept  {names[0]}", "green")], PAIRS, note)


def _evenly_by(numbers: Int[np.ndarray, " some"], by: Float[np.ndarray, " images"]) -> list[int]:
    """At most `PAIRS` of the numbers, evenly over their order."""
    order = numbers[np.argsort(by[numbers], kind="stable")]
    return order[np.unique(np.linspace(0, len(order) - 1, min(PAIRS, len(order))).round().astype(int))].tolist()


def _array(image: UInt8[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    return image.permute(1, 2, 0).numpy()
