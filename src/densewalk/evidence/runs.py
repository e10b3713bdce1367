"""A score that is a mean over several runs on the same units, such as k-means runs or memory samples. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Bool

from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, Scores, Statistic, Weights

MEMBERS: dict[str, type[Statistic]] = {kind.KIND: kind for kind in (MeanIoU, MatchedIoU, MeanOfUnits)}


@dataclass(frozen=True)
class MeanOfRuns(Statistic):
    """Mean over runs of each run's score; all runs are scored on the same draw of units."""

    KIND = "mean_of_runs"
    INTERVAL = "percentile"
    runs: tuple[Statistic, ...]

    @property
    def units(self) -> int:
        """The number of units."""
        return self.runs[0].units

    @property
    def known(self) -> Bool[np.ndarray, " units"]:
        """Which units any run's score is made of."""
        return np.any([run.known for run in self.runs], axis=0)

    def of_weights(self, weights: Weights) -> Scores:
        """See the class."""
        return np.mean([run.of_weights(weights) for run in self.runs], axis=0)

    def changed_classes(self, weights: Weights) -> Bool[np.ndarray, " resamples"]:
        """Multisets that lack a class in any run."""
        return np.any([run.changed_classes(weights) for run in self.runs], axis=0)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file; those of a run have its number before their names."""
        found = [run.parts() for run in self.runs]
        options = [{"kind": run.KIND, **options} for run, (options, _) in zip(self.runs, found, strict=True)]
        return {"runs": options}, {f"{i}/{name}": array for i, (_, arrays) in enumerate(found) for name, array in arrays.items()}

    @classmethod
    def from_parts(cls, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The statistic of these options and arrays."""
        runs = []
        for i, of_run in enumerate(options["runs"]):
            own = {name.removeprefix(f"{i}/"): array for name, array in arrays.items() if name.startswith(f"{i}/")}
            plain = {name: value for name, value in of_run.items() if name != "kind"}
            runs.append(MEMBERS[of_run["kind"]].from_parts(plain, own))
        return cls(tuple(runs))


def mean_of_runs(runs: list[Statistic]) -> Statistic:
    """The mean of several runs; a single one is its own."""
    return runs[0] if len(runs) == 1 else MeanOfRuns(tuple(runs))
