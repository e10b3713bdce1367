"""k-NN votes for four numbers of neighbors: one search against four, in CPU seconds on one thread and growth of the peak memory.

    python benchmarks/knn.py                        # a few seconds
    python benchmarks/knn.py --training 100000 --queries 500

The plain form does what the released code does by its description: a search for each number of neighbors, over all similarities
of a hundredth of the queries (at least one) at a time, and votes by a one-hot row of all classes for each neighbor. Features are
given (clustered random unit vectors), so the backbone's time, the same in both, is not part of this.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.knn.evaluate import vote
from densewalk.evaluations.knn.settings import NEIGHBORS
from densewalk.ops.nearest_neighbors import nearest

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


def measure(function: Callable[..., Tensor], data: tuple[Any, ...], repeat: int = 3) -> tuple[float, float, Tensor]:
    """Fewest CPU seconds, growth of the peak memory in MiB, and the result; in a process of its own, since a peak never falls."""

    def child(pipe: "multiprocessing.connection.Connection") -> None:
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = []
        for _ in range(repeat):
            begun = time.process_time()
            result = function(*data)
            spent.append(time.process_time() - begun)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pipe.send((min(spent), grown, result.numpy()))

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there,))
    process.start()
    seconds, grown, result = here.recv()
    process.join()
    return seconds, grown, torch.from_numpy(result)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=20_000, help="training pictures")
    parser.add_argument("--queries", type=int, nargs="+", default=[200, 5_000], help="pictures to classify")
    parser.add_argument("--classes", type=int, default=1_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.training} training pictures, {arguments.classes} classes, k = {NEIGHBORS}")
    print("| queries | plain, CPU s | ours | ratio | plain, MiB more | ours | equal predictions |\n|---|---|---|---|---|---|---|")
    for queries in arguments.queries:
        data = (*make_data(arguments.training, queries, arguments.classes), arguments.classes)
        seconds, memory, result = measure(ours, data)
        plain_seconds, plain_memory, expected = measure(plain, data, repeat=1)
        equal = 100 * (result == expected).double().mean().item()
        ratio = plain_seconds / seconds
        print(
            f"| {queries} | {plain_seconds:.2f} | {seconds:.2f} | {ratio:.1f} | {plain_memory:.0f} | {memory:.0f} | {equal:.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
