"""The file of unit statistics beside a result: what each metric is made of, image by image or object by object. Free of torch.

results/{run}/s{seed}/{evaluation}.units.npz      arrays, and one entry `about` with a `UnitsHeader` as JSON; no pickled object

It is written with the result record and holds its hashes, so that a file of another result is refused.
"""

import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, ValidationError

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.settings import Settings
from densewalk.evidence.average_precision import AveragePrecision
from densewalk.evidence.groups import MeanOfGroups
from densewalk.evidence.runs import MeanOfRuns
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, RatioOfSums, Statistic

KINDS: dict[str, type[Statistic]] = {
    kind.KIND: kind for kind in (MeanOfUnits, RatioOfSums, MeanOfGroups, MeanIoU, MatchedIoU, MeanOfRuns, AveragePrecision)
}
TOLERANCE = 1e-4  # relative: a metric may have been computed from float32
ARCHIVE = re.compile(r"\.(tar|zip)$")
AGAIN = "delete the result, so that it is made again (snakemake does so)"


class StatisticHeader(Settings):
    """kind: one of KINDS. options: what it is made with beside its arrays."""

    kind: str
    options: dict[str, Any] = {}


class UnitsHeader(Settings):
    """The entry `about` of a file of unit statistics.

    config_hash, run_hash, backbone_sha256: of the result, as in its record. unit, cluster: what they are, in the singular.
    statistics: of each metric that can be resampled.
    """

    version: Literal[1] = 1
    config_hash: str
    run_hash: str
    backbone_sha256: str
    unit: str
    cluster: str | None = None
    statistics: dict[str, StatisticHeader] = Field(min_length=1)


@dataclass(frozen=True)
class Units:
    """What a result is made of.

    ids: of the units, unique, in the order of all statistics. unit: what one is. statistics: metric -> what its score follows from.
    clusters: what units belong together, by unit (a video's objects); empty where they are drawn one by one.
    """

    ids: Sequence[str]
    unit: str
    statistics: Mapping[str, Statistic]
    clusters: Sequence[str] = ()
    cluster: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            raise AssertionError(f"{self.unit}: ids are not unique")
        for metric, statistic in self.statistics.items():
            if statistic.units != len(self.ids):
                raise AssertionError(f"{metric}: {statistic.units} units instead of {len(self.ids)}")
        if self.clusters and len(self.clusters) != len(self.ids):
            raise AssertionError(f"{len(self.clusters)} clusters of {len(self.ids)} units")

    @property
    def owner(self) -> Int[np.ndarray, " units"] | None:
        """Number of each unit's cluster, in the order in which clusters first come; None without clusters."""
        places = {name: i for i, name in enumerate(dict.fromkeys(self.clusters))}
        return np.array([places[c] for c in self.clusters]) if self.clusters else None

    @property
    def drawn(self) -> int:
        """How many clusters, or units without clusters, can be drawn: one tells nothing about the choice of others."""
        return len(set(self.clusters)) if self.clusters else len(self.ids)

    def require_scores(self, metrics: Mapping[str, float | None]) -> None:
        """Require that the statistics give the numbers of the record."""
        for metric, statistic in self.statistics.items():
            value = metrics[metric]
            if value is None or not np.isclose(statistic.score, value, rtol=TOLERANCE, atol=TOLERANCE):
                raise AssertionError(f"{metric}: {statistic.score} by its units, {value} in the record")


def image_ids(paths: Iterable[str | Path], root: str | Path) -> list[str]:
    """Names of images: their paths below `root`, so that they are the same wherever the data lie; a second one of a name is numbered.

    An archive that takes a folder's place (train.tar/1.jpg) gives the names that the folder's images have.
    """
    base, seen, names = os.path.abspath(root), Counter[str](), []
    for path in paths:
        whole = os.path.abspath(path)
        name = os.path.relpath(whole, base) if whole.startswith(os.path.join(base, "")) else os.fspath(path)
        name = "/".join(ARCHIVE.sub("", part) for part in name.split(os.sep))
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def units_path(record: Path) -> Path:
    """The file of unit statistics of a result record."""
    return record.with_suffix(".units.npz")


def write_units(record: Path, units: Units, *, config_hash: str, run_hash: str, backbone_sha256: str) -> None:
    """Write the file beside a result record, atomically; the same content gives the same bytes."""
    arrays: dict[str, np.ndarray] = {"ids": np.array(units.ids, dtype=np.str_), "clusters": np.array(units.clusters, dtype=np.str_)}
    headers = {}
    for metric, statistic in units.statistics.items():
        options, parts = statistic.parts()
        headers[metric] = StatisticHeader(kind=statistic.KIND, options=options)
        arrays |= {f"{metric}/{name}": _small(array) for name, array in parts.items()}
    header = UnitsHeader(
        config_hash=config_hash,
        run_hash=run_hash,
        backbone_sha256=backbone_sha256,
        unit=units.unit,
        cluster=units.cluster,
        statistics=headers,
    )
    arrays["about"] = np.array(header.model_dump_json())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
    with atomic_write(units_path(record)) as out:
        out.write_bytes(buffer.getvalue())


def _small(array: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them."""
    if array.dtype.kind not in "iu" or not array.size:
        return array
    return array.astype(np.promote_types(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))


def read_units(record: Path, *, config_hash: str, run_hash: str, backbone_sha256: str | None) -> Units:
    """Read the file beside a result record.

    Args:
        config_hash, run_hash, backbone_sha256: of the record; a file with others belongs to another result.

    Raises:
        UserError: it is missing, damaged, of another version or of another result.
    """
    path = units_path(record)
    if not path.exists():
        raise UserError(f"{path}: no such file: what the numbers of {record.name} are made of", todo=AGAIN)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = UnitsHeader.model_validate_json(json.dumps(json.loads(str(arrays.pop("about")))), strict=True)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, ValidationError) as error:
        raise UserError(f"{path} is no file of unit statistics of this version: {error}", todo=AGAIN) from error
    expected = {"config_hash": config_hash, "run_hash": run_hash, "backbone_sha256": backbone_sha256}
    for key, value in expected.items():
        if value is not None and getattr(header, key) != value:
            raise UserError(f"{path} belongs to another result: {key} {getattr(header, key)} (the record has {value})", todo=AGAIN)
    try:
        statistics = {metric: _statistic(metric, found, arrays) for metric, found in header.statistics.items()}
        return Units(arrays["ids"].tolist(), header.unit, statistics, arrays["clusters"].tolist(), header.cluster)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}", todo=AGAIN) from error


def _statistic(metric: str, header: StatisticHeader, arrays: Mapping[str, np.ndarray]) -> Statistic:
    prefix = f"{metric}/"
    parts = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return KINDS[header.kind].from_parts(header.options, parts)


def require_same_units(a: Units, b: Units, names: tuple[str, str]) -> None:
    """Raise a UserError that names the first difference between the units of two rows."""
    for i, (one, other) in enumerate(zip(a.ids, b.ids, strict=False)):  # lengths are compared below
        if one != other:
            raise UserError(f"{names[0]} and {names[1]} were scored on other units: number {i + 1} is {one!r} and {other!r}")
    if len(a.ids) != len(b.ids):
        longer = names[0] if len(a.ids) > len(b.ids) else names[1]
        first = max(a.ids, b.ids, key=len)[min(len(a.ids), len(b.ids))]
        counts = f"{len(a.ids)} and {len(b.ids)}; the first that only {longer} has is {first!r}"
        raise UserError(f"{names[0]} and {names[1]} were scored on other units: {counts}")
