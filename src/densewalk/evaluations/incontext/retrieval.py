"""Dense nearest-neighbor retrieval: from features and masks of a few images to the label map of another one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.evaluations.common.spread_memory import SpreadMemory, spare_rows, whole_tiles
from densewalk.evaluations.incontext.settings import IncontextSettings


@dataclass(frozen=True)
class Memory:
    """Patches to retrieve from.

    features: L2-normalized. labels: share of each class among a patch's pixels; sums to less than 1 where some are ignored. Of several
    processes, each has a part. start: number of its first patch among all. all_entries: of all processes; None: there are no others.
    patches: of one image's memory, the numbers of its patches.
    """

    features: Float[Tensor, "entries dim"]
    labels: Float[Tensor, "entries classes"]
    start: int = 0
    all_entries: int | None = None
    patches: Int[Tensor, " entries"] | None = None

    @property
    def spread(self) -> SpreadMemory:
        """The features of all processes."""
        return SpreadMemory(self.features, self.start, len(self.features) if self.all_entries is None else self.all_entries)


class Store:
    """A memory that is filled in place: joining its parts at the end would need twice the space. capacity: patches."""

    def __init__(self, capacity: int, device: str = "cpu") -> None:
        self.capacity, self.filled = capacity, 0
        self.features = self.labels = torch.empty(0, 0, device=device)

    def add(self, part: Memory) -> None:
        """Append a part."""
        if not self.filled:
            self._make_room(part.features.shape[1], part.labels.shape[1])
        end = self.filled + len(part.labels)
        self.features[self.filled : end], self.labels[self.filled : end] = part.features, part.labels
        self.filled = end

    def _make_room(self, dim: int, classes: int) -> None:
        rows = self.capacity + spare_rows()
        self.features, self.labels = self.features.new_empty(rows, dim), self.labels.new_empty(rows, classes)

    def memory(self) -> Memory:
        """The parts that were added; of several processes, first those of process 0, then those of process 1, ..."""
        dim, classes = max(distributed.all_objects((self.features.shape[1], self.labels.shape[1])))
        if not self.filled:
            self._make_room(dim, classes)
        (features, labels), start, count = whole_tiles([self.features, self.labels], self.filled)
        return Memory(features, labels, start, count)


def patch_labels(
    masks: Shaped[Tensor, "batch height width"], patch: int, classes: int, *, ignore: int | None
) -> Float[Tensor, "batch patches classes"]:
    """Class histogram of every patch, by one scatter.

        for pixel in patch:
            if pixel != ignore:
                histogram[pixel] += 1 / patch ** 2

    Args:
        ignore: label that is not counted; None to count all.
    """
    batch, height, width = masks.shape
    rows, columns = height // patch, width // patch
    pixels = masks.long().view(batch, rows, patch, columns, patch).transpose(2, 3).reshape(batch, rows * columns, patch * patch)
    if ignore is not None:
        pixels = torch.where(pixels == ignore, classes, pixels)  # one more bin, cut off below
    counts = torch.zeros(batch, rows * columns, classes + 1, device=masks.device)
    counts.scatter_add_(2, pixels, torch.ones((), device=masks.device).expand_as(pixels))
    return counts[..., :classes] / patch**2


def choose_patches(labels: Float[Tensor, "patches classes"], keep: int, generator: torch.Generator) -> Int[Tensor, " chosen"]:
    """At most `keep` patches of one image, those with classes that are rare in it first; patches without a label never.

        score(p) = U(0, 1) * sum over the classes c in patch p of (number of patches that contain c);    the smallest win

    Source: Hummingbird, appendix; the released code's rule.
    """
    present = (labels > 0).float()
    scores = (present @ present.sum(0)) * torch.rand(len(labels), generator=generator)
    scores[present.sum(1) == 0] = torch.inf
    chosen = scores.topk(min(keep, len(scores)), largest=False).indices
    return chosen[scores[chosen].isfinite()]


def mix_labels(
    memory: Memory, similarity: Float[Tensor, "queries k"], index: Int[Tensor, "queries k"], temperature: float
) -> Float[Tensor, "queries classes"]:
    """The neighbors' histograms, weighted by softmax(cosine / temperature)."""
    return _mix(*neighbor_labels(memory, index), similarity, temperature)


def neighbor_labels(memory: Memory, index: Int[Tensor, "queries k"]) -> tuple[Float[Tensor, "rows classes"], Int[Tensor, "queries k"]]:
    """A table of histograms, and each neighbor's row in it; all processes call it equally often."""
    if distributed.world_size() == 1:
        return memory.labels, index
    labels = memory.spread.fetch(memory.labels, index).flatten(0, 1)
    return labels, torch.arange(index.numel(), device=index.device).view_as(index)


def _mix(
    labels: Float[Tensor, "rows classes"], rows: Int[Tensor, "queries k"], similarity: Float[Tensor, "queries k"], temperature: float
) -> Float[Tensor, "queries classes"]:
    if not len(rows):
        return labels.new_zeros(0, labels.shape[1])
    return F.embedding_bag(rows, labels, per_sample_weights=(similarity / temperature).softmax(dim=1), mode="sum")


# scores of the labels at each pixel -> label of each pixel
Refined = Callable[[Float[Tensor, "labels height width"]], Int[Tensor, "height width"]]


def predict(
    mixture: Float[Tensor, "patches classes"], grid: tuple[int, int], size: tuple[int, int], refined: Refined | None = None
) -> Int[Tensor, "height width"]:
    """The most voted class of every pixel after bilinear interpolation; classes that got no vote are left out before it.

    Args:
        refined: chooses labels by their votes in place of the argmax.
    """
    voted = mixture.any(0).nonzero()[:, 0]
    # channels last (recognized by its strides, the batch's included) is five times faster here, and so is its argmax
    maps = mixture[:, voted].unflatten(0, (1, *grid)).permute(0, 3, 1, 2)
    votes = F.interpolate(maps, size, mode="bilinear")[0]
    return voted[votes.permute(1, 2, 0).argmax(-1) if refined is None else refined(votes)]


# what is told of a query: each patch's nearest patches by similarity, their numbers, their histograms, and the mixture of these
Told = Callable[
    [Float[Tensor, "queries k"], Int[Tensor, "queries k"], Float[Tensor, "queries k classes"], Float[Tensor, "queries classes"]], None
]


def retrieve(
    memory: Memory,
    features: Float[Tensor, "dim rows columns"],
    settings: IncontextSettings,
    size: tuple[int, int],
    tell: Told | None = None,
    refined: Refined | None = None,
) -> Int[Tensor, "height width"]:
    """The label map of one image, from its features."""
    rows, columns = features.shape[1:]
    mixture = mix_nearest(memory, F.normalize(features.flatten(1).T, dim=1), settings, tell)
    return predict(mixture, (rows, columns), size, refined)


def mix_nearest(
    memory: Memory, queries: Float[Tensor, "queries dim"], settings: IncontextSettings, tell: Told | None = None
) -> Float[Tensor, "queries classes"]:
    """The mixture of each query's nearest patches; all processes call it equally often, perhaps without queries."""
    similarity, index = memory.spread.nearest(queries, settings.neighbours)
    labels, rows = neighbor_labels(memory, index)
    mixture = _mix(labels, rows, similarity, settings.temperature)
    if tell is not None:
        tell(similarity, index, labels[rows], mixture)
    return mixture
