"""The compiled loops beside plain forms and beside their floors: confusion matrix, exact search; CPU milliseconds on one thread.

    python -m benchmarks.inner_loops                     # half a minute
    python -m benchmarks.inner_loops --repeat 1 --pixels 40 60 --entries 500 --queries 40

Everything is measured in this process, in turns; medians. The floor of the confusion matrix is reading its labels, that of the search its
matrix products, in the same blocks. The histograms are how mmsegmentation counts an image: intersection, prediction, truth.
"""

import argparse
from collections.abc import Iterator, Sequence

import torch
from benchmarks.measure import Row, table
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.metrics.segmentation import confusion_matrix
from densewalk.ops.cpu.linear import linear
from densewalk.ops.search import nearest_neighbors


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--pixels", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--entries", type=int, default=18_816, help="of the memory: 24 images of 784 patches")
    parser.add_argument("--queries", type=int, default=784)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(table([*confusion_rows(args.pixels, args.repeat), *search_rows(args.entries, args.queries, args.repeat)]))


# -- confusion matrix --------------------------------------------------------------------------------------------------


def label_maps(height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Rectangles of classes as 8-bit labels, some ignored; a prediction that is wrong in a twentieth of the pixels."""
    rng = torch.Generator().manual_seed(0)
    target = torch.zeros(height, width, dtype=torch.uint8)
    for _ in range(12):
        y, x = int(torch.randint(0, height, (1,), generator=rng)), int(torch.randint(0, width, (1,), generator=rng))
        target[y : y + height // 3, x : x + width // 3] = int(torch.randint(0, classes, (1,), generator=rng))
    wrong = torch.rand(target.shape, generator=rng) < 0.05
    prediction = torch.where(wrong, torch.randint(0, classes, target.shape, generator=rng), target.long())
    target[:3] = 255
    return target, prediction


def confusion_rows(pixels: Sequence[int], repeat: int, every: Sequence[int] = (21, 151)) -> Iterator[Row]:
    """A row for each number of classes."""
    for classes in every:
        yield confusion_row(*label_maps(pixels[0], pixels[1], classes), classes, repeat)


def confusion_row(target: Tensor, prediction: Tensor, classes: int, repeat: int) -> Row:
    """Counting the labels, and two plain forms."""

    def histograms() -> None:
        kept = target != 255
        t, p = target[kept], prediction[kept]
        for labels in (p[p == t], p, t):
            torch.histc(labels.float(), bins=classes, min=0, max=classes - 1)

    def bincount() -> None:
        kept = target.flatten() != 255
        (target.flatten()[kept].long() * classes + prediction.flatten()[kept]).bincount(minlength=classes**2)

    return Row.of(
        f"confusion matrix of {target.shape[0]} x {target.shape[1]} pixels, {classes} classes",
        lambda: confusion_matrix(target, prediction, classes, classes, ignore=255),
        ("reading the labels", lambda: (target.max(), prediction.max())),
        {"one bincount": bincount, "three histograms": histograms},
        repeat,
    )


# -- search ------------------------------------------------------------------------------------------------------------


def features(count: int, dim: int = 384) -> Tensor:
    """Random unit vectors."""
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(count)), dim=1)


def search_rows(entries: int, queries: int, repeat: int, every: Sequence[int] = (1, 30, 200)) -> Iterator[Row]:
    """A row for each number of neighbors."""
    memory, asked = features(entries), features(queries)
    for k in every:
        yield search_row(memory, asked, k, repeat)


def search_row(memory: Tensor, queries: Tensor, k: int, repeat: int) -> Row:
    """The search, and two plain forms."""
    tiles = memory.split(nearest_neighbors.CPU_TILE)
    blocks = queries.tensor_split(-(-len(queries) // nearest_neighbors.BLOCK))

    def products() -> None:
        for block in blocks:
            for tile in tiles:
                linear(block, tile)

    def products_and_topk() -> None:
        for block in blocks:
            for tile in tiles:
                linear(block, tile).topk(min(k, len(tile)))

    return Row.of(
        f"the {k} nearest of {len(memory)}, {len(queries)} queries",
        lambda: nearest_neighbors.nearest(memory, queries, k),
        ("its products", products),
        {"its products, topk of each": products_and_topk, "one product, topk": lambda: (queries @ memory.T).topk(min(k, len(memory)))},
        repeat,
    )


if __name__ == "__main__":
    main()
