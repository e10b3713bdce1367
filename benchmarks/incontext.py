"""In-context segmentation with 151 classes: each step and the whole, in turns with its plain form, in CPU time and memory.

    python -m benchmarks.incontext                  # about half a minute
    python -m benchmarks.incontext --memory 48 --queries 16 --classes 21

The plain form is what the released implementation does by its description: one-hot labels of every pixel, all similarities at
once, gathered neighbor features, all classes interpolated, label maps kept until the end. Both score by the same confusion matrix.
Features are given (clustered random unit vectors), so the backbone's time, the same in both, is not part of this.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from benchmarks.floors import Products
from benchmarks.measure import Row, Told, memory_growth, table
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.incontext.retrieval import Memory, Store, mix_labels, patch_labels, predict
from densewalk.evaluations.metrics.segmentation import Confusion, hungarian, mean_iou, reassign
from densewalk.ops.search.nearest_neighbors import nearest

K, TEMPERATURE, PATCH = 30, 0.02, 16


@dataclass
class Data:
    """Images as features [images, patches, dim] and masks [images, size, size]."""

    memory: Tensor
    memory_masks: Tensor
    queries: Tensor
    query_masks: Tensor
    classes: int


def make_data(memory: int, queries: int, classes: int, size: int = 448, dim: int = 384) -> Data:
    """Masks of rectangles from some ten classes an image; a patch's feature is near its class's center."""
    rng = torch.Generator().manual_seed(0)
    masks = torch.randint(1, classes, (memory + queries, 1, 1), generator=rng).expand(-1, size, size).clone()
    for mask in masks:
        for _ in range(9):
            y, x = torch.randint(0, size // 2, (2,), generator=rng).tolist()
            mask[y : y + size // 2, x : x + size // 3] = int(torch.randint(1, classes, (1,), generator=rng))
    centers = torch.randn(classes, dim, generator=rng)
    labels = masks[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(1)
    features = centers[labels] + 1.5 * torch.randn(*labels.shape, dim, generator=rng)
    masks = masks.to(torch.uint8)
    return Data(features[:memory], masks[:memory], features[memory:], masks[memory:], classes)


# -- the plain form --------------------------------------------------------------------------------------------------


def plain(data: Data, clock: "Clock") -> tuple[float, float]:
    """mIoU, mIoU after matching."""
    with clock("memory"):
        features, labels = plain_memory(data)
    with clock("search"):
        queries = data.queries.flatten(0, 1)
        index = (queries @ features.T).topk(K).indices
    with clock("mix labels"):
        neighbors, theirs = features[index], labels[index]
        cosine = (F.normalize(queries, dim=1)[:, None] * neighbors).sum(-1)
        mixture = ((cosine / TEMPERATURE).softmax(1)[..., None] * theirs).sum(1)
    size = data.query_masks.shape[-1]
    with clock("interpolate"):
        maps = mixture.view(len(data.queries), -1, data.classes).transpose(1, 2).unflatten(2, (size // PATCH, -1))
        prediction = torch.cat([F.interpolate(m[None], (size, size), mode="bilinear").argmax(1) for m in maps])
    with clock("score"):
        confusion = Confusion(data.classes, ignore=0)
        confusion.add(data.query_masks, prediction)
        return scores(confusion)


def plain_memory(data: Data) -> tuple[Tensor, Tensor]:
    """Normalized features and label histograms, by one-hot labels of batches of 8 images."""
    features, labels = [], []
    for maps, masks in zip(data.memory.split(8), data.memory_masks.split(8), strict=True):
        n, side = len(masks), masks.shape[-1] // PATCH
        pixels = masks.long().view(n, side, PATCH, side, PATCH).transpose(2, 3).reshape(n, side * side, PATCH * PATCH)
        labels.append(F.one_hot(pixels, data.classes).float().mean(2).flatten(0, 1))
        features.append(F.normalize(maps, dim=-1).flatten(0, 1))
    return torch.cat(features), torch.cat(labels)


# -- ours ------------------------------------------------------------------------------------------------------------


def ours(data: Data, clock: "Clock") -> tuple[float, float]:
    """The functions of densewalk.evaluations.incontext, image by image as the evaluation calls them."""
    size = data.query_masks.shape[-1]
    with clock("memory"):
        store = Store(data.memory.shape[0] * data.memory.shape[1])
        for maps, mask in zip(data.memory, data.memory_masks, strict=True):
            store.add(Memory(F.normalize(maps, dim=1), patch_labels(mask[None], PATCH, data.classes, ignore=None)[0]))
        memory = store.memory()
    confusion = Confusion(data.classes, ignore=0)
    for maps, mask in zip(data.queries, data.query_masks, strict=True):
        with clock("search"):
            similarity, index = nearest(memory.features, F.normalize(maps, dim=1), K)
        with clock("mix labels"):
            mixture = mix_labels(memory, similarity, index, TEMPERATURE)
        with clock("interpolate"):
            prediction = predict(mixture, (size // PATCH, size // PATCH), (size, size))
        with clock("score"):
            confusion.add(mask, prediction)
    with clock("score"):
        return scores(confusion)


def scores(confusion: Confusion) -> tuple[float, float]:
    """mIoU, mIoU after matching."""
    matrix = confusion.matrix
    return mean_iou(matrix, absent="zero"), mean_iou(reassign(matrix, hungarian(matrix)), absent="zero")


# -- measuring -------------------------------------------------------------------------------------------------------


class Clock:
    """Process time by label."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, label: str) -> "Clock":
        """Whose time the coming block is."""
        self.label = label
        return self

    def __enter__(self) -> None:
        self.begun = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.spent[self.label] = self.spent.get(self.label, 0.0) + time.process_time() - self.begun


def row(memory: int, queries: int, classes: int, repeat: int) -> Row:
    """The whole, from features to scores; the floor is the products of the search."""
    data = make_data(memory, queries, classes)
    with Products() as products:
        ours(data, Clock())
    rivals = {"plain": lambda: plain(data, Clock())}
    what = f"in-context, {memory * 784} patches, {queries * 784} queries, {classes} classes"
    return Row.of(what, lambda: ours(data, Clock()), ("its products", Told(products.seconds)), rivals, repeat)


def steps(data: Data, repeat: int) -> list[str]:
    """A line for each step: medians of both, in turns."""
    clocks: dict[Callable[[Data, Clock], tuple[float, float]], list[Clock]] = {plain: [], ours: []}
    for _ in range(repeat):
        for way, own in clocks.items():
            own.append(Clock())
            way(data, own[-1])
    lines = []
    for step in clocks[plain][0].spent:
        slow, fast = (median(clock.spent[step] for clock in own) for own in clocks.values())
        lines.append(f"| {step} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |")
    return lines


def main() -> None:
    """Measure both and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=24, help="memory images of 784 patches")
    parser.add_argument("--queries", type=int, default=16, help="query images")
    parser.add_argument("--classes", type=int, default=151)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(table([row(args.memory, args.queries, args.classes, args.repeat)]))
    data = make_data(args.memory, args.queries, args.classes)
    print("\n| step | plain, CPU s | ours, CPU s | ratio |\n|---|---|---|---|", *steps(data, args.repeat), sep="\n")
    grown = [memory_growth(lambda way=way: way(data, Clock())) for way in (plain, ours)]
    print(f"| additional peak memory, MiB | {grown[0]:.0f} | {grown[1]:.0f} | {grown[0] / max(grown[1], 1):.1f} |")
    fast_scores, slow_scores = ours(data, Clock()), plain(data, Clock())
    difference = max(abs(a - b) for a, b in zip(fast_scores, slow_scores, strict=True))
    print(f"\nmIoU {fast_scores[0]:.6f}, matched {fast_scores[1]:.6f}; largest difference to the plain form {difference:.1e}")


if __name__ == "__main__":
    main()
