"""Choosing what to train on: pictures without near duplicates, and those that are like a reference set.

    densewalk curate --spec JSON --backbone FILE --data RECEIPT ... --out results/data/NAME.json

After DINOv2 (https://arxiv.org/abs/2304.07193, section 3, "Data processing"). Every picture x of the pool, a frame of a video each
`spacing_seconds` or a file of a folder, is compared by the cosine of L2-normalised CLS tokens f(x) of any backbone:

    duplicates   i ~ j if <f_i, f_j> >= threshold; of every connected component of ~ the first picture stays
    samples      of what is left, the k nearest pictures of each reference stay
    clusters     of what is left, those k-means clusters stay whose centre is the nearest of enough references

    results/data/{name}.json    the receipt: counts, similarities of neighbours, numbers of what is kept of each source
    results/data/{name}.csv     every picture of the pool: kept or why not, what it is most similar to and how much
    results/data/{name}.png     pairs of a kept picture and one that was dropped for it

The search is exact. Similarities are made tile by tile, so that memory holds the features and one tile. Deviations: the paper finds
copies with features trained for that (SSCD, https://arxiv.org/abs/2202.10261) among 64 neighbours of each picture, here any backbone
serves and all pairs are compared; of a cluster it draws some pictures, here all stay.
"""

import logging
from collections.abc import Iterator, Sequence
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
from densewalk.core.files import atomic_write, write_json
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import clock, track
from densewalk.curation.settings import CurationSettings, RetrievalSettings
from densewalk.data.image_folder import ImageFolder
from densewalk.data.images import normalize
from densewalk.data.sources import Source
from densewalk.data.video.clips import VideoClips
from densewalk.models.backbone import Backbone
from densewalk.models.feature_cache import Dense
from densewalk.ops.clustering import kmeans, nearest_center
from densewalk.ops.cpu.linear import linear
from densewalk.ops.nearest_neighbors import nearest
from densewalk.visualization.overlays import contact_sheet
from densewalk.visualization.panels import Panel

log = logging.getLogger("densewalk")
BATCH = 64  # pictures per forward pass
TILE = 2048  # pictures that meet as many others at once: 16 MiB of similarities
PAIRS = 8  # of each kind on the sheet, in two rows
CHAIN = 0.1  # a group of duplicates with a larger share of the pool is worth a warning


def curate(
    settings: CurationSettings, sources: Sequence[Source], backbone: Backbone, cls: Dense, out: Path, *, workers: int
) -> dict[str, Any]:
    """Choose, and write the list, the sheet and the receipt `out`, in this order.

    Args:
        cls: `backbone.cls`, or a cache around it.

    Returns:
        The receipt: kind, name, pictures, kept, duplicates, not_retrieved, largest_group (pictures of one group of duplicates),
        neighbour_similarity (quantiles over the pool), sources (name -> its receipt with `kept`, numbers of frames or pictures).

    Raises:
        UserError: no reference picture, features that are not finite, a size that patches do not fill, or nothing left.
    """
    if settings.size % backbone.patch:
        raise UserError(f"size {settings.size} is no multiple of the patch size", allowed=f"multiples of {backbone.patch}")
    references = ImageFolder(settings.retrieve.source) if settings.retrieve else None
    pools = [Pool(source, settings.spacing_seconds) for source in sources]
    x = features(backbone, cls, ConcatDataset([Squares(pool, settings.size) for pool in pools]), workers, "pool")
    like = features(backbone, cls, Squares(references, settings.size), workers, "references") if references else None
    choice = choose(x, like, settings)
    if not choice.kept.any():
        raise UserError("the curation keeps nothing", todo="lower least_references or raise neighbours")
    write_list(out.with_suffix(".csv"), pools, choice, references)
    draw(out.with_suffix(".png"), pools, choice, references)
    receipt = summary(out.stem, pools, choice)
    log.info(
        "kept %d of %d pictures: %d duplicates, %d not retrieved",
        *(receipt[k] for k in ("kept", "pictures", "duplicates", "not_retrieved")),
    )
    if receipt["largest_group"] > CHAIN * len(x):
        log.warning("one group of duplicates holds %d of %d pictures: raise `duplicates` if they differ", receipt["largest_group"], len(x))
    write_json(out, receipt)
    return receipt


# -- the choice on features ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What becomes of each picture of a pool.

    first: the first picture of its group of duplicates, itself if it is the one. like_first: similarity to that.
    neighbour, similarity: the most similar other picture. retrieved: None where nothing was asked for.
    reference, like_reference: the most similar reference.
    """

    first: Int[np.ndarray, " pictures"]
    like_first: Float[np.ndarray, " pictures"]
    neighbour: Int[np.ndarray, " pictures"]
    similarity: Float[np.ndarray, " pictures"]
    retrieved: Bool[np.ndarray, " pictures"] | None
    reference: Int[np.ndarray, " pictures"] | None
    like_reference: Float[np.ndarray, " pictures"] | None

    @property
    def unique(self) -> Bool[np.ndarray, " pictures"]:
        """No duplicate of an earlier picture."""
        return self.first == np.arange(len(self.first))

    @property
    def kept(self) -> Bool[np.ndarray, " pictures"]:
        """What is trained on."""
        return self.unique if self.retrieved is None else self.unique & self.retrieved


def choose(x: Float[Tensor, "pictures dim"], references: Float[Tensor, "references dim"] | None, settings: CurationSettings) -> Choice:
    """Duplicates first, then the retrieval among what they leave. All features are L2-normalised."""
    first, neighbour, similarity = duplicates(x, settings.duplicates)
    like_first = (x * x[torch.from_numpy(first).to(x.device)]).sum(dim=1).cpu().numpy()
    retrieved = reference = like_reference = None
    if references is not None and settings.retrieve is not None:
        left = np.flatnonzero(first == np.arange(len(x)))
        among = retrieve(x[torch.from_numpy(left).to(x.device)], references, settings.retrieve, derive_seed("curation", settings.seed))
        retrieved = np.zeros(len(x), bool)
        retrieved[left[among]] = True
        values, index = nearest(references, x, 1)
        reference, like_reference = index[:, 0].cpu().numpy(), values[:, 0].cpu().numpy()
    return Choice(first, like_first, neighbour, similarity, retrieved, reference, like_reference)


def duplicates(
    x: Float[Tensor, "pictures dim"], threshold: float | None
) -> tuple[Int[np.ndarray, " pictures"], Int[np.ndarray, " pictures"], Float[np.ndarray, " pictures"]]:
    """The first picture of each one's group, the most similar other picture and its similarity (-1, -2 for a pool of one).

    for i, j with i < j:  if x[i] @ x[j] >= threshold: union(i, j)
    first[i] = min(j for j if find(j) == find(i))

    Args:
        threshold: None joins nothing.
    """
    group, neighbour, similarity = np.arange(len(x)), np.full(len(x), -1), np.full(len(x), -2.0, np.float32)
    for rows, columns, tile in tiles(x):
        for at, axis, other in ((rows, 1, columns), (columns, 0, rows)):
            best = tile.max(dim=axis)
            value, index = best.values.cpu().numpy(), best.indices.cpu().numpy() + other
            better = value > similarity[at : at + len(value)]
            similarity[at : at + len(value)][better], neighbour[at : at + len(value)][better] = value[better], index[better]
        if threshold is not None:
            i, j = (tile >= threshold).nonzero().T.cpu().numpy()
            group = join(group, i + rows, j + columns)
    return group, neighbour, similarity


def tiles(x: Float[Tensor, "pictures dim"]) -> Iterator[tuple[int, int, Float[Tensor, "rows columns"]]]:
    """First row, first column and similarities of each tile on or above the diagonal; a picture's with itself are -2."""
    for rows in range(0, len(x), TILE):
        for columns in range(rows, len(x), TILE):
            tile = linear(x[rows : rows + TILE], x[columns : columns + TILE])
            if rows == columns:
                tile.fill_diagonal_(-2.0)
            yield rows, columns, tile


def join(group: Int[np.ndarray, " pictures"], i: Int[np.ndarray, " pairs"], j: Int[np.ndarray, " pairs"]) -> Int[np.ndarray, " pictures"]:
    """The groups after the pictures i and j of each pair have come into one; a group is called by its first picture."""
    a, b = group[i], group[j]
    apart = a != b
    if not apart.any():
        return group
    pairs = coo_matrix((np.ones(apart.sum(), bool), (a[apart], b[apart])), shape=(len(group), len(group)))
    count, component = connected_components(pairs, directed=False)
    first = np.full(count, len(group))
    np.minimum.at(first, component, np.arange(len(group)))
    return first[component[group]]


def retrieve(
    x: Float[Tensor, "pictures dim"], references: Float[Tensor, "references dim"], settings: RetrievalSettings, seed: int
) -> Bool[np.ndarray, " pictures"]:
    """What is like the references.

    samples:   kept = {i for r in references for i in sorted(range(len(x)), key=lambda i: -references[r] @ x[i])[:neighbours]}
    clusters:  hits[c] = sum(c == argmin_c' |references[r] - centre[c']| for r in references)
               kept = {i if hits[argmin_c |x[i] - centre[c]|] >= least_references}
    """
    if settings.by == "samples":
        kept = np.zeros(len(x), bool)
        kept[nearest(x, references, settings.neighbours)[1].flatten().cpu().numpy()] = True
        return kept
    centres = kmeans(x, settings.clusters, seed=seed)
    hits = torch.bincount(nearest_center(references, centres), minlength=len(centres))
    return (hits >= settings.least_references)[nearest_center(x, centres)].cpu().numpy()


# -- pictures to features --------------------------------------------------------------------------------------------


class Pool(Dataset[Tensor]):
    """The pictures that may be kept of one source; `[i]` is uint8 [3, height, width] RGB.

    numbers: of the frames, or of the pictures in the order of their names.
    """

    def __init__(self, source: Source, spacing_seconds: float) -> None:
        self.source, self.receipt = source, source.receipt
        self.pictures: VideoClips | ImageFolder
        if source.kind == "video":
            self.pictures = VideoClips(source.path, self.receipt, frames=1, spacing_seconds=1.0)
            step = max(1, round(spacing_seconds * self.receipt["fps"]))
            self.numbers = [n for start, end in self.receipt["usable"] for n in range(start, end, step)]
        else:
            self.pictures = ImageFolder(source.path, receipt={**self.receipt, "kept": range(self.receipt["files"])})
            self.numbers = list(range(len(self.pictures)))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> UInt8[Tensor, "3 height width"]:
        number = self.numbers[i]
        return self.pictures.read([number])[0] if isinstance(self.pictures, VideoClips) else self.pictures[number]

    def name(self, i: int) -> str:
        """What people find the picture by: its time or its file."""
        return clock(self.numbers[i] / self.receipt["fps"]) if isinstance(self.pictures, VideoClips) else self.pictures.names[i]


class Squares(Dataset[Tensor]):
    """Pictures resized to a square, uint8 [3, size, size]."""

    def __init__(self, pictures: Pool | ImageFolder, size: int) -> None:
        self.pictures, self.size = pictures, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> UInt8[Tensor, "3 {self.size} {self.size}"]:
        return tv.resize(self.pictures[i], [self.size, self.size], InterpolationMode.BICUBIC, antialias=True).contiguous()


@torch.inference_mode()
def features(backbone: Backbone, cls: Dense, pictures: "Dataset[Tensor]", workers: int, label: str) -> Float[Tensor, "pictures dim"]:
    """L2-normalised CLS tokens, on the backbone's device.

    Raises:
        UserError: they are not finite.
    """
    device = next(backbone.parameters()).device
    result = torch.empty(len(pictures), backbone.dim, device=device)  # type: ignore[arg-type]
    for rows, batch in zip(result.split(BATCH), track(DataLoader(pictures, BATCH, num_workers=workers), label), strict=True):
        rows.copy_(F.normalize(cls(normalize(batch.to(device) / 255)), dim=1))
    if not result.isfinite().all():
        raise UserError(f"the backbone's features of the {label} are not finite", todo="check the run or checkpoint it comes from")
    return result


# -- what is written -------------------------------------------------------------------------------------------------


def summary(name: str, pools: Sequence[Pool], choice: Choice) -> dict[str, Any]:
    """The receipt."""
    kept, unique = choice.kept, choice.unique
    parts = np.split(kept, np.cumsum([len(pool) for pool in pools])[:-1])
    quantiles = np.quantile(choice.similarity, [0.05, 0.5, 0.95]).round(4).tolist()
    return {
        "kind": "curation",
        "name": name,
        "pictures": len(kept),
        "kept": int(kept.sum()),
        "duplicates": int((~unique).sum()),
        "not_retrieved": int((unique & ~kept).sum()),
        "largest_group": int(np.bincount(choice.first).max()),
        "neighbour_similarity": dict(zip(("5 %", "50 %", "95 %"), quantiles, strict=True)),
        "sources": {
            pool.source.name: {**pool.receipt, "kept": [n for n, k in zip(pool.numbers, part, strict=True) if k]}
            for pool, part in zip(pools, parts, strict=True)
        },
    }


def write_list(path: Path, pools: Sequence[Pool], choice: Choice, references: ImageFolder | None) -> None:
    """One line for each picture of the pool; pictures are called `{source} {time or file}`."""
    names = np.array([f"{pool.source.name} {pool.name(i)}" for pool in pools for i in range(len(pool))])
    reason = np.where(choice.kept, "kept", np.where(choice.unique, "not retrieved", "duplicate"))
    columns: dict[str, Any] = {
        "source": [pool.source.name for pool in pools for _ in range(len(pool))],
        "number": [number for pool in pools for number in pool.numbers],
        "picture": names,
        "reason": reason,
        "duplicate_of": np.where(choice.unique, "", names[choice.first]),
        "similarity": np.where(choice.unique, np.nan, choice.like_first),
        "neighbour": np.where(choice.neighbour < 0, "", names[choice.neighbour]),
        "neighbour_similarity": choice.similarity,
    }
    if references is not None:
        columns |= {"reference": np.array(references.names)[choice.reference], "reference_similarity": choice.like_reference}
    with atomic_write(path) as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")


def draw(path: Path, pools: Sequence[Pool], choice: Choice, references: ImageFolder | None) -> None:
    """Pairs, from the least to the most similar of each kind: a kept picture and its duplicate; a reference and what it kept or not."""
    pool: ConcatDataset[Tensor] = ConcatDataset(pools)
    names = [f"{p.source.name} {p.name(i)}" for p in pools for i in range(len(p))]
    panels = []
    # of each group the duplicate that is least like its first picture
    order = np.argsort(choice.like_first, kind="stable")
    order = order[~choice.unique[order]]
    for i in _spread(order[np.unique(choice.first[order], return_index=True)[1]], choice.like_first):
        panels.append(Panel(_array(pool[int(choice.first[i])]), f"kept  {names[choice.first[i]]}", "green"))
        panels.append(Panel(_array(pool[i]), f"duplicate {choice.like_first[i]:.3f}  {names[i]}", "red"))
    if references is not None and choice.reference is not None and choice.like_reference is not None:
        for verdict, colour, chosen in (("kept", "green", choice.kept), ("not retrieved", "red", choice.unique & ~choice.kept)):
            for i in _spread(np.flatnonzero(chosen), choice.like_reference):
                panels.append(Panel(_array(references[int(choice.reference[i])]), f"reference  {references.names[choice.reference[i]]}"))
                panels.append(Panel(_array(pool[i]), f"{verdict} {choice.like_reference[i]:.3f}  {names[i]}", colour))
    note = f"kept {choice.kept.sum()} of {len(names)} pictures; numbers are cosine similarities"
    contact_sheet(path, panels or [Panel(_array(pool[0]), f"kept  {names[0]}", "green")], PAIRS, note)


def _spread(numbers: Int[np.ndarray, " some"], by: Float[np.ndarray, " pictures"]) -> list[int]:
    """At most `PAIRS` of the numbers, evenly over their order."""
    order = numbers[np.argsort(by[numbers], kind="stable")]
    return order[np.unique(np.linspace(0, len(order) - 1, min(PAIRS, len(order))).round().astype(int))].tolist()


def _array(picture: UInt8[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    return picture.permute(1, 2, 0).numpy()
