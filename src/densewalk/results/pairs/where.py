"""Where a difference lives: the test units and the classes that gained and lost most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from densewalk.evidence.own_scores import class_scores, own_scores
from densewalk.evidence.units import Units
from densewalk.results.pairs.differences import Differences, Pairs

MOST = 5  # units, and classes, at each end


@dataclass(frozen=True)
class Moved:
    """A unit or a class: its own score in the reference and in the run, mean over seeds. cluster: what it belongs to; empty for nothing."""

    name: str
    before: float
    after: float
    cluster: str = ""

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True)
class Where:
    """The ends of the order by difference: gained first, and lost first. unit: what units are. moved: how many gained, and lost."""

    unit: str
    units: tuple[Sequence[Moved], Sequence[Moved]]
    classes: tuple[Sequence[Moved], Sequence[Moved]]
    moved: tuple[int, int]


def where(pairs: Pairs, metric: str, differences: Differences) -> Where | None:
    """Where the difference in a metric lives; None where the units have no scores of their own."""
    units = [[differences.units_of(pair[side]) for pair in pairs] for side in (0, 1)]
    scores = [[own_scores(u.statistics[metric]) for u in side] for side in units]
    if any(own is None for side in scores for own in side):
        return None
    before, after = (np.mean([own for own in side if own is not None], axis=0) for side in scores)
    first = units[0][0]
    clusters = list(first.clusters) or [""] * len(first.ids)
    known = np.flatnonzero(~np.isnan(before) & ~np.isnan(after)).tolist()
    moved = [Moved(first.ids[i], float(before[i]), float(after[i]), clusters[i]) for i in known]
    gained, lost = sum(m.difference > 0 for m in moved), sum(m.difference < 0 for m in moved)
    return Where(first.unit, ends(moved), ends(_classes(pairs, units, metric)), (gained, lost))


def ends(moved: Sequence[Moved]) -> tuple[Sequence[Moved], Sequence[Moved]]:
    """Those that gained most, and those that lost most; what stays as it is is in neither."""
    order = sorted(moved, key=lambda m: -m.difference)
    return [m for m in order[:MOST] if m.difference > 0], [m for m in order[::-1][:MOST] if m.difference < 0]


def _classes(pairs: Pairs, units: Sequence[Sequence[Units]], metric: str) -> list[Moved]:
    """IoU or AP of each class that both have, mean over seeds."""
    of_units = [[class_scores(own.statistics[metric]) for own in side] for side in units]
    sides = [[of_units[side][i] or pair[side].class_iou or {} for i, pair in enumerate(pairs)] for side in (0, 1)]
    shown = {key: name for pair in pairs for record in pair for key, name in record.class_names.items()}
    found = []
    for name in sides[0][0]:
        values = [[of_seed.get(name) for of_seed in side] for side in sides]
        numbers = [[v for v in side if v is not None] for side in values]
        if all(len(n) == len(pairs) for n in numbers):
            found.append(Moved(shown.get(name, name), float(np.mean(numbers[0])), float(np.mean(numbers[1]))))
    return found
