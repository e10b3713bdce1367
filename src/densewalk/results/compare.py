"""Compare two folders of results: which numbers are new, gone or other, and why.

    densewalk diff results_before results_after [--csv changes.csv]

    incontext   dora seed 0   mIoU   41.20 -> 40.87 (-0.33)
        the run: settings.lr: 0.001 -> 0.002
        versions: torch 2.13.0 -> 2.14.1

Numbers are compared to the last digit. The reasons are all that the two records, and the records of the runs behind them, say
differently: settings by key, what a run is built on, commit, versions, device. If they say nothing differently, something outside
the records has changed, such as the data; that is said, too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from densewalk.core.errors import UserError
from densewalk.models.origin import RunBackbone
from densewalk.results.identity import unequal
from densewalk.results.records import ResultRecord, RunRecord, read_results, read_run, results_in
from densewalk.results.significance import fixed
from densewalk.results.tables import write_csv

COLUMNS = ("change", "run", "seed", "evaluation", "metric", "before", "after", "difference", "why")
UNKNOWN = "nothing that the records tell: has the data, or a checkpoint's file, changed?"
Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Change:
    """One number that is not the same in both folders. before, after: None if there is none."""

    kind: str  # appeared, vanished, changed
    run: str
    seed: int
    evaluation: str
    metric: str
    before: float | None
    after: float | None
    why: tuple[str, ...]

    @property
    def difference(self) -> str:
        """The difference as text; empty without two values."""
        if self.before is None or self.after is None:
            return ""
        difference = self.after - self.before
        return fixed(difference, sign=True) if abs(difference) >= 0.005 else f"{difference:+.1e}"

    @property
    def text(self) -> str:
        """One line for people."""
        before, after = (fixed(v) or "no value" for v in (self.before, self.after))
        values = {"appeared": f"appeared: {after}", "vanished": f"vanished: {before}", "changed": f"{before} -> {after}"}[self.kind]
        difference = f" ({self.difference})" if self.kind == "changed" and self.difference else ""
        return f"{self.evaluation}   {self.run} seed {self.seed}   {self.metric}   {values}{difference}"


@dataclass(frozen=True)
class Comparison:
    """All changes, and how many numbers are the same."""

    changes: list[Change]
    equal: int


def compare(before: Path, after: Path) -> Comparison:
    """Compare two folders of results."""
    old, new = (_results_of(folder) for folder in (before, after))
    changes, equal = [], 0
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        one, two = (record.metrics if record else {} for record in (a, b))
        kinds = {metric: _kind(metric, one, two) for metric in {**one, **two}}
        different = [metric for metric, kind in kinds.items() if kind != "equal"]
        equal += len(kinds) - len(different)
        why = tuple(reasons(a, b, before, after)) if different and a and b else ()
        changes += [Change(kinds[m], *key, m, one.get(m), two.get(m), why) for m in different]
    return Comparison(changes, equal)


def _results_of(folder: Path) -> dict[tuple[str, int, str], ResultRecord]:
    """Read the result records below a folder, by run, seed and evaluation."""
    paths = results_in(folder)
    if not paths:
        found = "holds no result" if folder.is_dir() else "does not exist"
        raise UserError(f"folder {folder} {found}", allowed="a folder with {run}/s{seed}/{evaluation}.json, e.g. my-study/results")
    return {(r.run, r.seed, r.evaluation): r for r in read_results(paths)}


def _kind(metric: str, before: Metrics, after: Metrics) -> str:
    if metric not in before:
        return "appeared"
    if metric not in after:
        return "vanished"
    return "equal" if before[metric] == after[metric] else "changed"


def reasons(a: ResultRecord, b: ResultRecord, before: Path, after: Path) -> Iterator[str]:
    """What the records of one evaluation, and of the runs behind it, say differently."""
    found = [
        *(f"the evaluation: {text}" for text in unequal(a.spec, b.spec, ignored=("run_hash", "labels"))),
        *_run_reasons(a, b, before, after),
        *_facts(a, b),
    ]
    yield from found or [UNKNOWN]


def _run_reasons(a: ResultRecord, b: ResultRecord, before: Path, after: Path) -> Iterator[str]:
    """What differs in how the backbone was made, back to the first run of the chain that differs by itself."""
    run, seed, where, seen = a.run, a.seed, "the run", set()
    while (run, seed) not in seen:
        seen.add((run, seed))
        paths = [folder / run / f"s{seed}" / "run.json" for folder in (before, after)]
        one, two = (read_run(path) if path.is_file() else None for path in paths)
        if a.run_hash == b.run_hash:
            yield from (f"the run: {text}" for text in (_facts(one, two) if one and two else []))
            return
        if not (one and two):
            yield f"{where}: another configuration, of which run.json is not there"
            return
        yield from (f"{where}: {text}" for text in unequal(one.spec.model_dump(), two.spec.model_dump(), ignored=("hash", "run")))
        init = two.spec.init
        if not isinstance(init, RunBackbone) or init == one.spec.init:
            return
        run, seed, where = init.name, init.seed, f"{init.name}, which it is built on"


def _facts(a: ResultRecord | RunRecord, b: ResultRecord | RunRecord) -> Iterator[str]:
    """Differences in what is recorded beside a configuration."""
    for name in ("compat", "version", "method_version", "device"):
        one, two = (getattr(record, name, None) for record in (a, b))
        if one != two:
            yield f"{name}: {one} -> {two}"
    if a.code != b.code or a.dirty:
        yield f"commit: {a.code} -> {b.code}"
    yield from (f"versions: {text}" for text in unequal(a.versions, b.versions))
    trained = [{name: getattr(r.training, name, None) for name in ("device", "processes", "steps")} for r in (a, b)]
    for found, record in zip(trained, (a, b), strict=True):
        if record.training and record.training.length:
            found["budget measured on"] = record.training.length.machine
    yield from (f"training: {text}" for text in unequal(*trained))


def text(found: Comparison) -> str:
    """The changes as text, those of one evaluation together with their reasons below them."""
    groups: dict[tuple[str, str, int], list[Change]] = defaultdict(list)
    for change in found.changes:
        groups[change.evaluation, change.run, change.seed].append(change)
    lines = []
    for changes in groups.values():
        lines += [*(change.text for change in changes), *(f"    {why}" for why in changes[0].why)]
    kinds = Counter(change.kind for change in found.changes)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in ("changed", "appeared", "vanished"))
    return "\n".join([*lines, f"{found.equal} numbers are equal, {counts}"])


def write_changes(found: Comparison, path: Path) -> None:
    """Write the changes as CSV, one line each."""
    rows = [
        (c.kind, c.run, str(c.seed), c.evaluation, c.metric, fixed(c.before, 6), fixed(c.after, 6), c.difference, "; ".join(c.why))
        for c in found.changes
    ]
    write_csv(pd.DataFrame(rows, columns=list(COLUMNS), dtype=str), path)
