"""Keep which labelled patches voted for the patches of a few queries, for the page: visualization/votes.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from densewalk.core import distributed
from densewalk.evaluations.common.shares import in_order
from densewalk.visualization.votes import FULL, NO_LABEL, MemoryImage, Query, Votes, small_image, to_text, write_votes

QUERIES = 2  # of those in `strip.png`
VOTERS = 4  # of each patch, those with the largest weights
CLASSES = 3  # of each patch, whose shares of the votes are kept
PICTURED = 48  # memory images with the most votes, which are drawn
THUMBNAIL, SHOWN = 96, 320  # pixels of a memory image and of a query
Named = Callable[[int], str]  # number of an image -> its name
Drawn = Callable[[int], Image.Image]  # number of an image -> what the network has seen


@dataclass(frozen=True)
class Origins:
    """Where the memory's patches come from, in their order. view: image, and pass with other augmentations. label: the most frequent."""

    view: Int[np.ndarray, " entries"]
    patch: Int[np.ndarray, " entries"]
    label: Int[np.ndarray, " entries"]


class OriginStore:
    """Where the patches of a memory come from, in the order in which they are added to it."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def add(self, view: int, patches: Int[Tensor, " chosen"], labels: Float[Tensor, "chosen classes"]) -> None:
        """Add the patches of a view."""
        label = labels.argmax(1).cpu().numpy()
        self.parts.append(np.stack([np.full(len(label), view), patches.cpu().numpy(), label]).astype(np.int32))

    def origins(self) -> Origins:
        """Of all processes' patches: those of process 0, then those of process 1, as the memory numbers them."""
        own = np.concatenate(self.parts, axis=1) if self.parts else np.zeros((3, 0), np.int32)
        return Origins(*np.concatenate(distributed.all_objects(own), axis=1))


@dataclass(frozen=True)
class Ballot:
    """The votes for a query. voters: [patches, voters, 4], the memory's views by their own numbers.

    mixture: [patches, classes, 2 + voters]: label, its share of all votes, and of this what each voter gives to it.
    """

    predicted: Int[np.ndarray, " patches"]
    share: Float[np.ndarray, " patches"]
    truth: Int[np.ndarray, " patches"]
    voters: Float[np.ndarray, "patches voters 4"]
    mixture: Float[np.ndarray, "patches classes given"]


def count_votes(
    origins: Origins,
    weights: Float[Tensor, "patches k"],
    index: Int[Tensor, "patches k"],
    labels: Float[Tensor, "patches k classes"],
    mixture: Float[Tensor, "patches classes"],
    truth: Float[Tensor, "patches classes"],
) -> Ballot:
    """The largest votes for each patch of a query.

    Args:
        weights, index, labels: of the nearest patches, which sum to 1, their numbers in the memory, and their histograms. mixture: of
            these. truth: share of each class in a patch.
    """
    largest = weights.topk(min(VOTERS, weights.shape[1]), dim=1)
    numbers = index.gather(1, largest.indices).cpu().numpy()
    share, predicted = mixture.max(1)
    known = truth.any(1)
    voters = np.stack([origins.view[numbers], origins.patch[numbers], origins.label[numbers], largest.values.cpu().numpy()], axis=-1)
    label = torch.where(known, truth.argmax(1), NO_LABEL)
    kept = _kept_classes(mixture, predicted, torch.where(known, truth.argmax(1), predicted))
    given = (labels * weights[..., None]).gather(1, largest.indices[..., None].expand(-1, -1, labels.shape[2]))
    parts = [kept[:, None].float(), mixture.gather(1, kept)[:, None], given.gather(2, kept[:, None].expand(-1, given.shape[1], -1))]
    mixed = torch.cat(parts, dim=1).transpose(1, 2)
    return Ballot(predicted.cpu().numpy(), share.clamp(0, 1).cpu().numpy(), label.cpu().numpy(), voters, mixed.cpu().numpy())


def _kept_classes(
    mixture: Float[Tensor, "patches classes"], predicted: Int[Tensor, " patches"], truth: Int[Tensor, " patches"]
) -> Int[Tensor, "patches kept"]:
    """The predicted class of each patch, the true one, then the others with the largest shares."""
    scores = mixture.scatter(1, truth[:, None], 3.0).scatter(1, predicted[:, None], 4.0)
    return scores.topk(min(CLASSES, scores.shape[1]), dim=1).indices


def write_ballots(
    path: Path,
    found: dict[int, Ballot],
    queries: tuple[Named, Drawn],
    views: tuple[Named, Drawn],
    grid: tuple[int, int],
    labels: Sequence[str],
) -> None:
    """Write the votes for all processes' queries; process 0 does. queries, views: by a query's number, and by a memory view's."""
    numbers, ballots = in_order({i: i for i in found}), in_order(found)
    if distributed.rank() > 0 or not ballots:
        return
    everything = np.concatenate([ballot.voters.reshape(-1, 4) for ballot in ballots])
    known, place = np.unique(everything[:, 0].astype(int), return_inverse=True)
    total = np.bincount(place, everything[:, 3], len(known))
    pictured = set(known[np.argsort(-total, kind="stable")[:PICTURED]].tolist())
    (query_name, query), (view_name, view) = queries, views
    memory = [MemoryImage(name=view_name(i), image=small_image(view(i), THUMBNAIL) if i in pictured else None) for i in known.tolist()]
    written = []
    for number, ballot in zip(numbers, ballots, strict=True):
        voters = ballot.voters.copy()
        voters[..., 0] = np.searchsorted(known, voters[..., 0])
        voters[..., 3] = np.round(FULL * voters[..., 3])
        mixture = ballot.mixture.copy()
        mixture[..., 1:] = np.round(FULL * mixture[..., 1:].clip(0, 1))
        written.append(
            Query(
                name=query_name(number),
                image=small_image(query(number), SHOWN),
                predicted=to_text(ballot.predicted),
                share=to_text(np.round(FULL * ballot.share)),
                truth=to_text(ballot.truth),
                voters=to_text(voters),
                mixture=to_text(mixture),
            )
        )
    rows, columns = grid
    shape = {"rows": rows, "columns": columns, "voters": ballots[0].voters.shape[1], "classes": ballots[0].mixture.shape[1]}
    write_votes(path, Votes(**shape, labels=list(labels), memory=memory, queries=written))
