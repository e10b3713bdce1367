"""How often a 95 % interval over test units holds the truth, in simulated studies.

    python -m benchmarks.interval_coverage [STUDIES]

A study is a sample of test units from a large population, scored by two rows that agree in part; the truth is the difference on the
whole population. Printed: the share of 1,000 studies whose interval holds it, and on which side it lies in the others.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from densewalk.evidence.bootstrap import paired_bootstrap
from densewalk.evidence.statistics import MeanIoU, MeanOfUnits, Statistic

POPULATION = 20_000
RESAMPLES = 999


@dataclass(frozen=True)
class Population:
    """Units that a study draws from. truth: the difference on all of them. sample: two rows and the owner of each unit."""

    truth: float
    sample: Callable[[np.random.Generator], tuple[Statistic, Statistic, np.ndarray | None]]


def images(count: int, classes: int = 8, seed: int = 0) -> Population:
    """mIoU of images that hold some classes each, of very different sizes."""
    generator = np.random.default_rng(seed)
    union = generator.gamma(0.5, 400, (POPULATION, classes)).astype(int) * (generator.random((POPULATION, classes)) < 0.4)
    quality = generator.beta(3, 2, (POPULATION, classes))
    rows = [np.floor(union * np.clip(quality + generator.normal(shift, 0.15, quality.shape), 0, 1)) for shift in (0.0, 0.02)]

    def row(hits: np.ndarray, chosen: np.ndarray) -> MeanIoU:
        unit, category = union[chosen].nonzero()
        parts = hits[chosen][unit, category].astype(int), union[chosen][unit, category]
        return MeanIoU(len(chosen), classes, unit, category, *parts)

    def sample(draws: np.random.Generator) -> tuple[Statistic, Statistic, None]:
        chosen = draws.integers(POPULATION, size=count)
        return row(rows[0], chosen), row(rows[1], chosen), None

    everything = np.arange(POPULATION)
    return Population(row(rows[1], everything).score - row(rows[0], everything).score, sample)


def right_answers(count: int, seed: int = 0) -> Population:
    """Top-1 accuracy of two rows that agree on most images."""
    generator = np.random.default_rng(seed)
    a = generator.random(POPULATION) < 0.7
    b = np.where(generator.random(POPULATION) < 0.15, generator.random(POPULATION) < 0.75, a)

    def sample(draws: np.random.Generator) -> tuple[Statistic, Statistic, None]:
        chosen = draws.integers(POPULATION, size=count)
        return MeanOfUnits(a[chosen].astype(float), scale=100.0), MeanOfUnits(b[chosen].astype(float), scale=100.0), None

    return Population(100 * float(b.mean() - a.mean()), sample)


def objects_of_videos(videos: int, seed: int = 0, *, clustered: bool = True) -> Population:
    """J of one to four objects a video, whose differences agree within a video. clustered: whole videos are drawn."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 5, POPULATION)
    first = np.concatenate([[0], sizes.cumsum()])
    own = np.repeat(generator.normal(0.01, 0.05, POPULATION), sizes) + generator.normal(0, 0.02, first[-1])
    a = generator.beta(4, 2, first[-1])

    def sample(draws: np.random.Generator) -> tuple[Statistic, Statistic, np.ndarray | None]:
        chosen = draws.integers(POPULATION, size=videos)
        units = np.concatenate([np.arange(first[v], first[v + 1]) for v in chosen])
        owner = np.repeat(np.arange(videos), sizes[chosen]) if clustered else None
        return MeanOfUnits(a[units], scale=100.0), MeanOfUnits(a[units] + own[units], scale=100.0), owner

    return Population(100 * float(own.mean()), sample)


POPULATIONS = {
    "mIoU, 200 images": lambda: images(200),
    "top-1, 500 images": lambda: right_answers(500),
    "J, objects of 60 videos": lambda: objects_of_videos(60),
    "J, objects of 30 videos": lambda: objects_of_videos(30),
    "the same, objects drawn one by one": lambda: objects_of_videos(30, clustered=False),
}


def holds(population: Population, studies: int, method: str, seed: int = 1) -> Iterator[int]:
    """Of each study: 0 if the interval holds the truth, -1 if it lies below it, 1 above."""
    generator = np.random.default_rng(seed)
    for study in range(studies):
        a, b, owner = population.sample(generator)
        found = paired_bootstrap([a], [b], owner=owner, resamples=RESAMPLES, seed=study, method=method)
        yield int(found.low > population.truth) - int(found.high < population.truth)


def main() -> None:
    """Print the table."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    print(f"{'95 % intervals of ' + str(studies) + ' studies':<38}{'method':<12}{'hold':>7}{'below':>8}{'above':>8}{'CPU s':>8}")
    for name, make in POPULATIONS.items():
        population = make()
        for method in ("percentile", "BCa"):
            begun = time.process_time()
            sides = np.array([*holds(population, studies, method)])
            shares = "".join(f"{100 * (sides == side).mean():>7.1f}%" for side in (0, -1, 1))
            print(f"{name:<38}{method:<12}{shares}{time.process_time() - begun:8.1f}", flush=True)


if __name__ == "__main__":
    main()
