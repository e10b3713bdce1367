"""What a comparison with reference values yields: rows, and notes on what is not compared."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One quantity of one case. allowed: largest difference; 0 is equal to the bit."""

    file: str
    case: str
    quantity: str
    ours: float
    theirs: float
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough; NaN is not."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Note:
    """A case that is not compared, and why."""

    file: str
    case: str
    why: str


def compare(file: str, case: str, quantity: str, ours: Any, theirs: Any, allowed: float) -> Row:
    """Element by element; NaN in the same place is equal.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        raise ValueError(f"{file}, {case}, {quantity}: shape {a.shape}, expected {b.shape}")
    same = (np.isnan(a) & np.isnan(b)) | (a == b)  # infinities, too
    with np.errstate(invalid="ignore"):
        difference = float(np.where(same, 0, np.abs(a - b)).max()) if a.size else 0.0
    return Row(file, case, quantity, _mean(a), _mean(b), difference, allowed)


def relative(file: str, case: str, quantity: str, ours: Any, theirs: Any, allowed: float, floor: float = 1e-7) -> Row:
    """The norm of the difference over the norm of theirs, which counts as `floor` at least."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        raise ValueError(f"{file}, {case}, {quantity}: shape {a.shape}, expected {b.shape}")
    norms = [float(np.linalg.norm(x)) for x in (a, b)]
    return Row(file, case, quantity, *norms, float(np.linalg.norm(a - b)) / max(norms[1], floor), allowed)


def elementwise(file: str, case: str, quantity: str, ours: Any, theirs: Any, allowed: float, floor: float = 1.0) -> Row:
    """`compare`, each difference over |theirs| + floor: relative and absolute tolerance at once, which are equal for floor 1."""
    row = compare(file, case, f"{quantity}, over size + {floor:g}", ours, theirs, allowed)
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    scale = np.where(np.isfinite(b), np.abs(b) + floor, 1)
    return replace(row, difference=compare(file, case, quantity, a / scale, b / scale, allowed).difference)


def compare_named(file: str, values: Any, case: str, found: Mapping[str, Any], allowed: float, *always: str) -> Iterator[Row]:
    """`compare` for all quantities that the file holds under the same name; a KeyError for one of `always` that it lacks."""
    for name, ours in found.items():
        if name in always or has(values, f"{case}/{name}"):
            yield compare(file, case, name.replace("_", " "), ours, values[f"{case}/{name}"], allowed)


def finite_or_equal(file: str, case: str, quantity: str, ours: Any, theirs: Any, allowed: float) -> Row:
    """`compare`, but where the release has NaN, which some of its steps cannot avoid, ours need only be finite."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    if not np.isnan(b).any():
        return compare(file, case, quantity, a, b, allowed)
    return Row(file, case, f"{quantity} (NaN in the release: finite here)", _mean(a), np.nan, float((~np.isfinite(a)).sum()), 0)


def _mean(x: np.ndarray) -> float:
    return float(np.nanmean(x)) if np.isfinite(x).any() or np.isinf(x).any() else float("nan")


def cases(values: Any, depth: int = 1, having: str = "") -> list[str]:
    """The names that the keys begin with, numbers in their order; `having`: of those only that hold this key."""
    found = {"/".join(key.split("/")[:depth]) for key in values.files}
    return sorted((c for c in found if not having or f"{c}/{having}" in values.files), key=_natural)


def children(values: Any, prefix: str) -> list[str]:
    """The names one level below a prefix, numbers in their order."""
    found = {key.removeprefix(f"{prefix}/").split("/")[0] for key in values.files if key.startswith(f"{prefix}/")}
    return sorted(found, key=_natural)


def numbered(values: Any, prefix: str) -> list[str]:
    """The cases of a prefix: what stands one level below it, or the prefix itself where that holds the arrays."""
    names = [f"{prefix}/{name}" for name in children(values, prefix)]
    below = [name for name in names if children(values, name)]
    if below:
        return below
    return [prefix] if names else []


def has(values: Any, key: str) -> bool:
    """True if the file holds a key and it is not empty."""
    return key in values.files and bool(values[key].size)


def optional(values: Any, names: tuple[str, ...], default: Any) -> Any:
    """The scalar under the first of some keys that the file holds, or what the reference values' description says."""
    for name in names:
        if name in values.files:
            return values[name].item()
    return default


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
