"""The interval that the choice of test units gives to a difference between two runs. Free of torch.

    differences = Differences(places, cache)
    differences.of(pairs, "mIoU")          # pairs: records of the reference and of the run, a pair for each seed

It is computed from the files of unit statistics that lie beside the records (evidence/units.py), once for each pair, and remembered in
`results/specs/differences.json`: page and tables find it there. Rows whose units are not the same, and records of earlier versions, which
have no such file, have none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash, derive_seed, file_sha256
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model, write_model
from densewalk.evidence.average_precision import AveragePrecision
from densewalk.evidence.bootstrap import RESAMPLES, informative, paired_bootstrap
from densewalk.evidence.runs import MeanOfRuns
from densewalk.evidence.statistics import MatchedIoU, Statistic
from densewalk.evidence.units import AGAIN, Units, read_units, require_same_units, units_path
from densewalk.results.records import ResultRecord

ARITHMETIC = 2  # raise it when a change of the code changes intervals
FEWER = 999  # resamples in tables and page where one of them costs milliseconds
LARGE_TABLE, MANY_DETECTIONS = 2_500, 20_000  # from this size on, a resample does
Place = tuple[str, int, str]  # run, seed, evaluation
Pairs = Sequence[tuple[ResultRecord, ResultRecord]]  # the reference's record and the run's, by seed


class UnitDifference(Settings):
    """A difference of scores, and its interval over test units; see evidence/bootstrap.py.

    unit, cluster: what was drawn; clusters is None where units are drawn one by one. seeds: pairs of records.
    """

    difference: float
    low: float
    high: float
    p: float
    method: str
    unit: str
    units: int
    cluster: str | None
    clusters: int | None
    resamples: int
    seeds: int
    notes: tuple[str, ...] = ()

    @property
    def is_tie(self) -> bool:
        """The interval holds 0, or p is above 0.05.

        They disagree where units are few (see `smallest_p`), and where BCa's interval is of few right and wrong answers: of 18 images with
        two discordant ones it may end short of 0, which one resample in eight gives.
        """
        return self.low <= 0 <= self.high or self.p > 0.05

    @property
    def drawn(self) -> str:
        """What was drawn, in words: `1449 images`, or `61 objects in 30 sequences`."""
        clusters = f" in {self.clusters} {self.cluster}s" if self.clusters is not None else ""
        return f"{self.units} {self.unit}s{clusters}"


class KnownDifferences(Settings):
    """The file that remembers differences, by what they are made from."""

    version: Literal[1] = 1
    differences: dict[str, UnitDifference] = {}


class Differences:
    """Differences between records over their test units.

    Args:
        places: the record of each result. cache: file that remembers; None remembers nothing.
    """

    def __init__(self, places: Mapping[Place, Path], cache: Path | None = None) -> None:
        self.places, self.cache = places, cache
        self.known: dict[str, UnitDifference] = {}
        self.used: dict[str, UnitDifference] = {}
        if cache is not None and cache.is_file():
            self.known = dict(read_model(cache, KnownDifferences, "file of differences", "delete it").differences)
        self._units: dict[Path, Units] = {}
        self._contents: dict[Path, str] = {}

    def of(self, pairs: Pairs, metric: str) -> UnitDifference | None:
        """The difference in a metric, the mean over pairs; None where it cannot be known."""
        records = [record for pair in pairs for record in pair]
        if not records or not all(self.has_units(record) for record in records):
            return None
        if len({(r.task, r.dataset, r.protocol, r.version) for r in records}) > 1:
            return None
        key = self._key(pairs, metric)  # of the files' contents: what is known of them needs no reading
        if key not in self.used and key in self.known:
            self.used[key] = self.known[key]
        if key not in self.used and self._are_of_the_same_units(records, metric):
            self.used[key] = self._computed(pairs, metric)
        return self.used.get(key)

    def save(self) -> None:
        """Remember what was asked for."""
        if self.cache is not None and not self.used.keys() <= self.known.keys():
            write_model(self.cache, KnownDifferences(differences={**self.known, **self.used}))

    def place_of(self, record: ResultRecord) -> Path:
        """The file of a record."""
        return self.places[record.run, record.seed, record.evaluation]

    def has_units(self, record: ResultRecord) -> bool:
        """True if the file of unit statistics is there: records of earlier versions have none."""
        return units_path(self.place_of(record)).is_file()

    def units_of(self, record: ResultRecord) -> Units:
        """What a record's numbers are made of."""
        path = self.place_of(record)
        if path not in self._units:
            self._units[path] = units_of(record, path)
        return self._units[path]

    def _are_of_the_same_units(self, records: Sequence[ResultRecord], metric: str) -> bool:
        first, *others = found = [self.units_of(record) for record in records]
        if any(metric not in units.statistics for units in found):
            return False
        if any(list(u.ids) != list(first.ids) or list(u.clusters) != list(first.clusters) for u in others):
            return False
        return informative([units.statistics[metric] for units in found], first.owner) > 1

    def _key(self, pairs: Pairs, metric: str) -> str:
        contents = [[(self._content(r), r.config_hash, r.run_hash, r.metrics.get(metric)) for r in pair] for pair in pairs]
        return config_hash([ARITHMETIC, metric, contents])

    def _content(self, record: ResultRecord) -> str:
        path = units_path(self.place_of(record))
        if path not in self._contents:
            self._contents[path] = file_sha256(path)
        return self._contents[path]

    def _computed(self, pairs: Pairs, metric: str) -> UnitDifference:
        a, b = ([self.units_of(pair[side]) for pair in pairs] for side in (0, 1))
        resamples = min(affordable(units.statistics[metric]) for units in (*a, *b))
        return difference(a, b, metric, resamples=resamples)


def differences_file(results: Path) -> Path:
    """The file that remembers the differences of a study."""
    return results / "specs" / "differences.json"


def units_of(record: ResultRecord, path: Path) -> Units:
    """What a record's numbers are made of; a UserError names what is wrong with the file."""
    units = read_units(path, config_hash=record.config_hash, run_hash=record.run_hash, backbone_sha256=record.backbone_sha256)
    try:
        units.require_scores(record.metrics)
    except (AssertionError, KeyError) as error:
        raise UserError(f"{units_path(path)} does not give the numbers of {path}: {error}", todo=AGAIN) from error
    return units


def difference(a: Sequence[Units], b: Sequence[Units], metric: str, *, resamples: int = RESAMPLES) -> UnitDifference:
    """Compare rows that are scored on the same units, each by its seeds. The draw follows from what is compared: A - B mirrors B - A."""
    sides = [[units.statistics[metric] for units in side] for side in (a, b)]
    scores = sorted(config_hash([[float(s.score) for s in side], list(a[0].ids)]) for side in sides)
    drawn, notes = informative([*sides[0], *sides[1]], a[0].owner), []
    if smallest_p(drawn) > 0.05:
        notes.append(f"{drawn} {a[0].cluster or a[0].unit}s cannot tell any difference from 0 at 95 %")
    found = paired_bootstrap(*sides, owner=a[0].owner, resamples=resamples, seed=derive_seed(*scores) % 2**32)
    return UnitDifference(
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=max(found.p, smallest_p(drawn)),
        method=found.method,
        unit=a[0].unit,
        units=found.units,
        cluster=a[0].cluster,
        clusters=found.clusters,
        resamples=resamples,
        seeds=len(a),
        notes=(*found.notes, *notes),
    )


def smallest_p(drawn: int) -> float:
    """The smallest two-sided p that so many units, or clusters, can give: that all have one sign, by an exact test of signs.

    The bootstrap of three videos that agree would give 2 / (resamples + 1).
    """
    return 2.0 ** (1 - min(drawn, 1000))


def affordable(statistic: Statistic) -> int:
    """Resamples for tables and page: 9,999, or 999 where one of them costs milliseconds (`densewalk compare` has always 9,999)."""
    one = statistic.runs[0] if isinstance(statistic, MeanOfRuns) else statistic
    large = isinstance(one, MatchedIoU) and one.classes * one.clusters > LARGE_TABLE
    many = isinstance(one, AveragePrecision) and len(one.score_of_detection) > MANY_DETECTIONS
    return FEWER if large or many else RESAMPLES


def require_comparable(a: ResultRecord, b: ResultRecord, units: tuple[Units, Units], metric: str) -> None:
    """Raise a UserError that names the first thing in which two rows differ that must be equal."""
    names = (f"{a.run}:{a.evaluation}, seed {a.seed}", f"{b.run}:{b.evaluation}, seed {b.seed}")
    for key in ("task", "dataset", "protocol", "version"):
        one, other = getattr(a, key), getattr(b, key)
        if one != other:
            label = "version of the protocol" if key == "version" else key
            raise UserError(
                f"{names[0]} and {names[1]} are not comparable: {label}: {one} and {other}", todo="compare rows of one protocol"
            )
    for name, record, found in zip(names, (a, b), units, strict=True):
        if metric not in found.statistics:
            raise UserError(f"{name} has no unit statistics of {metric}", allowed=", ".join(found.statistics) or "none")
        if record.metrics.get(metric) is None:
            raise UserError(f"{name} has no value of {metric}")
    require_same_units(*units, names)
    if not np.array_equal(units[0].clusters, units[1].clusters):
        raise UserError(f"{names[0]} and {names[1]} have the same {units[0].unit}s in other {units[0].cluster or units[1].cluster}s")
