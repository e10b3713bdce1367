"""k-NN votes for four numbers of neighbors: one search in turns with four, in CPU time on one thread and growth of the peak memory.

    python -m benchmarks.knn                        # a few seconds
    python -m benchmarks.knn --training 100000 --queries 500

The plain form does what the released code does by its description: a search for each number of neighbors, over all similarities
of a hundredth of the queries (at least one) at a time, and votes by a one-hot row of all classes for each neighbor. Features are
given (clustered random unit vectors), so the backbone's time, the same in both, is not part of this.
"""

import argparse

import torch
from benchmarks.floors import Products
from benchmarks.measure import Row, Told, memory_growth, table
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.knn.evaluate import vote
from densewalk.evaluations.knn.settings import NEIGHBORS
from densewalk.ops.search.nearest_neighbors import nearest

TEMPERATURE = 0.07


def make_data(training: int, queries: int, classes: int, dim: int = 384) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the training pictures, their classes, features of the queries."""
    rng = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, dim, generator=rng)
    labels = torch.randint(0, classes, (training + queries,), generator=rng)
    features = F.normalize(centers[labels] + 4 * torch.randn(len(labels), dim, generator=rng), dim=1)
    return features[:training], labels[:training], features[training:]


def ours(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Predictions [4, queries]."""
    similarity, index = nearest(train, test, NEIGHBORS[-1])
    return vote(similarity, labels[index], classes, NEIGHBORS, TEMPERATURE)


def plain(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """The same with a search and one-hots for each number of neighbors."""
    return torch.stack([plain_for(train, labels, test, classes, k) for k in NEIGHBORS])


def plain_for(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int) -> Tensor:
    """Predictions for one number of neighbors."""
    predictions = []
    for block in test.split(max(1, len(test) // 100)):
        similarity, index = (block @ train.T).topk(k)
        one_hot = torch.zeros(len(block) * k, classes).scatter_(1, labels[index].view(-1, 1), 1)
        weights = (similarity / TEMPERATURE).exp()
        scores = (one_hot.view(len(block), k, classes) * weights[..., None]).sum(1)
        predictions.append(scores.sort(1, descending=True).indices[:, 0])
    return torch.cat(predictions)


def row(training: int, queries: int, classes: int, repeat: int) -> Row:
    """One number of queries; the floor is the products of one search."""
    data = (*make_data(training, queries, classes), classes)
    with Products() as products:
        ours(*data)
    rivals = {"a search for each k": lambda: plain(*data)}
    what = f"k-NN, {training} images, {queries} queries, four k"
    return Row.of(what, lambda: ours(*data), ("its products", Told(products.seconds)), rivals, repeat)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=20_000, help="training pictures")
    parser.add_argument("--queries", type=int, nargs="+", default=[200, 5_000], help="pictures to classify")
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.training} training pictures, {arguments.classes} classes, k = {NEIGHBORS}\n")
    print(table(row(arguments.training, queries, arguments.classes, arguments.repeat) for queries in arguments.queries))
    print("\n| queries | plain, MiB more | ours | equal predictions |\n|---|---|---|---|")
    for queries in arguments.queries:
        data = (*make_data(arguments.training, queries, arguments.classes), arguments.classes)
        memory = [memory_growth(lambda way=way, data=data: way(*data)) for way in (plain, ours)]
        equal = 100 * (ours(*data) == plain(*data)).double().mean().item()
        print(f"| {queries} | {memory[0]:.0f} | {memory[1]:.0f} | {equal:.2f} % |")


if __name__ == "__main__":
    main()
