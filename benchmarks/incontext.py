"""In-context segmentation with 151 classes: each step and the whole, against its plain form, in CPU seconds and memory.

    python benchmarks/incontext.py                  # about half a minute
    python benchmarks/incontext.py --memory 48 --queries 16 --classes 21

The plain form is what the released implementation does by its description: one-hot labels of every pixel, all similarities at
once, gathered neighbor features, all classes interpolated, label maps kept until the end. Both score by the same confusion matrix.
Features are given (clustered random unit vectors), so the backbone's time, the same in both, is not part of this.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.incontext.retrieval import Memory, Store, mix_labels, patch_labels, predict
from densewalk.evaluations.metrics.segmentation import Confusion, hungarian, mean_iou, reassign
from densewalk.ops.nearest_neighbors import nearest

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


def measure(way: Callable[[Data, Clock], tuple[float, float]], data: Data) -> tuple[dict[str, float], float, tuple[float, float]]:
    """CPU seconds by step, growth of the peak memory in MiB, scores; in a process of its own, since a peak never falls."""

    def child(pipe: "multiprocessing.connection.Connection") -> None:
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clock = Clock()
        found = way(data, clock)
        pipe.send((clock.spent, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, found))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    """Measure both and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=24, help="memory images of 784 patches")
    parser.add_argument("--queries", type=int, default=16, help="query images")
    parser.add_argument("--classes", type=int, default=151)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(args.memory, args.queries, args.classes)
    (fast, fast_rss, fast_scores), (slow, slow_rss, slow_scores) = measure(ours, data), measure(plain, data)
    print(f"{args.memory * 784} memory patches, {args.queries * 784} queries, {args.classes} classes, one thread\n")
    print("| step | plain, CPU s | ours, CPU s | ratio |\n|---|---|---|---|")
    for step in slow:
        print(f"| {step} | {slow[step]:.2f} | {fast[step]:.2f} | {slow[step] / fast[step]:.1f} |")
    total_slow, total_fast = sum(slow.values()), sum(fast.values())
    print(f"| **whole** | {total_slow:.2f} | {total_fast:.2f} | **{total_slow / total_fast:.1f}** |")
    print(f"| additional peak memory, MiB | {slow_rss:.0f} | {fast_rss:.0f} | {slow_rss / max(fast_rss, 1):.1f} |")
    difference = max(abs(a - b) for a, b in zip(fast_scores, slow_scores, strict=True))
    print(f"\nmIoU {fast_scores[0]:.6f}, matched {fast_scores[1]:.6f}; largest difference to the plain form {difference:.1e}")


if __name__ == "__main__":
    main()
