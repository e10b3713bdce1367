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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from densewalk.core.errors import UserError
from densewalk.models.origin import RunBackbone
from densewalk.results.identity import unequal, what_decides
from densewalk.results.records import ResultRecord, RunRecord, read_results, read_run, results_in
from densewalk.results.significance import fixed
from densewalk.results.tables import write_csv
from densewalk.training.progress_files import read_or_none

COLUMNS = ("change", "run", "seed", "evaluation", "metric", "before", "after", "difference", "why")
UNKNOWN = "nothing that the records tell: has the data, or a checkpoint's file, changed?"
NAMES = ("run", "evaluation", "labels", "dataset", "run_hash")  # of an evaluation's specification, and the hash of what is told apart
Metrics = Mapping[str, float | None]
Key = tuple[str, int, str]  # run, seed and evaluation
Results = Mapping[Key, ResultRecord]


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
class Renamed:
    """What has another name in the second folder. kind: run, evaluation, data set or data. why: if it was not made alike."""

    kind: str
    before: str
    after: str
    why: str = ""

    @property
    def text(self) -> str:
        """One line for people."""
        return f"renamed {self.kind}: {self.before} -> {self.after}{self.why}"


@dataclass(frozen=True)
class Comparison:
    """All changes, by the names of the second folder; how many numbers are the same; and what has another name now.

    alone: the runs of each folder none of whose results has a partner in the other one.
    """

    changes: list[Change]
    equal: int
    renamed: list[Renamed] = field(default_factory=list)
    alone: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def compare(before: Path, after: Path) -> Comparison:
    """Compare two folders of results."""
    old, new = (_results_of(folder) for folder in (before, after))
    partners = _partners(old, new, before, after)
    renamed: list[Renamed] = []
    changes, equal = [], 0
    for key, other in [*partners.items(), *((None, key) for key in new if key not in partners.values())]:
        a, b = old[key] if key else None, new[other] if other else None
        one, two = (record.metrics if record else {} for record in (a, b))
        kinds = {metric: _kind(metric, one, two) for metric in {**one, **two}}
        different = [metric for metric, kind in kinds.items() if kind != "equal"]
        equal += len(kinds) - len(different)
        why = tuple(reasons(a, b, before, after)) if different and a and b else ()
        renamed += _renamed(a, b, before, after) if a and b else []
        name = other or key
        assert name is not None
        changes += [Change(kinds[m], *name, m, one.get(m), two.get(m), why) for m in different]
    paired = [{key[0] for key in keys if key} for keys in ([key for key, other in partners.items() if other], partners.values())]
    alone = [tuple(dict.fromkeys(key[0] for key in keys if key[0] not in known)) for keys, known in zip((old, new), paired, strict=True)]
    return Comparison(changes, equal, list(dict.fromkeys(renamed)), (alone[0], alone[1]))


def _partners(old: Results, new: Results, before: Path, after: Path) -> dict[Key, Key | None]:
    """What each result of the first folder is called in the second one; None where it is gone.

    A name that is in both folders keeps its results, whatever they are now. The others go by what made them, and what is left by run: one
    of each folder alone that have method, start and data in common.
    """
    fresh = [key for key in new if key not in old]
    made = {key: _made_by(new[key], after) for key in fresh}
    found: dict[Key, Key | None] = {}
    for key, record in old.items():
        if key in new:
            found[key] = key
            continue
        wanted = _made_by(record, before) if fresh else None
        alike = [other for other in fresh if made[other] == wanted]
        # of several that are made alike the one with most names in common
        found[key] = max(alike, key=lambda other: (other[0] == key[0]) + (other[2] == key[2]), default=None)
        fresh = [other for other in fresh if other != found[key]]
    gone = [key for key, other in found.items() if other is None]
    pairs = _kin(
        [key for key in gone if key[0] not in {k[0] for k in new}],
        [key for key in fresh if key[0] not in {k[0] for k in old}],
        before,
        after,
    )
    return {key: other or ((pairs[key[0]], *key[1:]) if (pairs.get(key[0]), *key[1:]) in fresh else None) for key, other in found.items()}


def _kin(gone: Sequence[Key], fresh: Sequence[Key], before: Path, after: Path) -> dict[str, str]:
    """First folder's run -> second one's, where just one of each has this method, architecture, start and data."""
    of = [{run: _origin(folder, run, seed) for run, seed, _ in reversed(keys)} for folder, keys in ((before, gone), (after, fresh))]
    counts = [Counter(runs.values()) for runs in of]
    alone = {origin for origin in counts[0] if origin is not None and counts[0][origin] == counts[1][origin] == 1}
    names = {origin: run for run, origin in of[1].items()}
    return {run: names[origin] for run, origin in of[0].items() if origin in alone}


def _origin(folder: Path, run: str, seed: int) -> tuple[Any, ...] | None:
    """Method, architecture, start and data of a run, as far as its settings may change; None if its record does not say."""
    record = _run_of(folder, run, seed)
    if record is None or record.contents is None:
        return None
    init = record.spec.init
    start = init.name if isinstance(init, RunBackbone) else record.contents.init
    return record.spec.method, record.spec.arch, init.kind, start, tuple(record.contents.data)


def _made_by(record: ResultRecord, folder: Path) -> tuple[Any, ...]:
    """What makes a result, without names: hashes, seed, and the contents that its backbone was made from."""
    run = _run_of(folder, record.run, record.seed)
    contents = run.contents.model_dump_json() if run and run.contents else None
    return record.config_hash, record.run_hash, record.seed, record.task, contents


def _run_of(folder: Path, run: str, seed: int) -> RunRecord | None:
    path = folder / run / f"s{seed}" / "run.json"
    return read_run(path) if path.is_file() else None


def _renamed(a: ResultRecord, b: ResultRecord, before: Path, after: Path) -> Iterator[Renamed]:
    """The names that differ between two records of one outcome."""
    pairs = {"evaluation": (a.evaluation, b.evaluation)}
    if a.run_hash == b.run_hash:
        pairs = {"run": (a.run, b.run), **pairs}
    if a.config_hash == b.config_hash:
        pairs["data set"] = (a.dataset, b.dataset)
    yield from (Renamed(kind, *names) for kind, names in pairs.items() if names[0] != names[1])
    if a.run_hash != b.run_hash:
        if a.run != b.run:
            yield Renamed("run", a.run, b.run, " (the only ones with this method, start and data; their settings differ)")
        return
    places = (before / a.run / f"s{a.seed}" / "run.json", after / b.run / f"s{b.seed}" / "run.json")
    one, two = (read_or_none(path, RunRecord) for path in places)  # where no number differs, a damaged one stops nothing
    if one and two and one.contents == two.contents and len(_data_of(one)) == len(_data_of(two)):  # else nothing says which is which
        yield from (Renamed("data", *names) for names in zip(_data_of(one), _data_of(two), strict=True) if names[0] != names[1])


def _data_of(record: RunRecord) -> list[str]:
    """The names of the data that a run was trained on, in order."""
    return list(record.spec.model_dump().get("data") or {})


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
        *(f"the evaluation: {text}" for text in unequal(a.spec, b.spec, ignored=NAMES)),
        *_run_reasons(a, b, before, after),
        *_facts(a, b),
    ]
    yield from found or [UNKNOWN]


def _run_reasons(a: ResultRecord, b: ResultRecord, before: Path, after: Path) -> Iterator[str]:
    """What differs in how the backbone was made, back to the first run of the chain that differs by itself."""
    names, seed, where, seen = (a.run, b.run), a.seed, "the run", set()
    while (names, seed) not in seen:
        seen.add((names, seed))
        one, two = (_run_of(folder, name, seed) for folder, name in zip((before, after), names, strict=True))
        if a.run_hash == b.run_hash:
            yield from (f"the run: {text}" for text in ([*_other_contents(one, two), *_facts(one, two)] if one and two else []))
            return
        if not (one and two):
            yield f"{where}: another configuration, of which run.json is not there"
            return
        yield from (f"{where}: {text}" for text in _unequal_specs(one, two))
        old, init = one.spec.init, two.spec.init
        if not (isinstance(init, RunBackbone) and isinstance(old, RunBackbone)) or old.hash == init.hash:
            return
        names, seed, where = (old.name, init.name), init.seed, f"{init.name}, which it is built on"


def _unequal_specs(one: RunRecord, two: RunRecord) -> Iterator[str]:
    """How the specifications of two runs differ, but for names and paths of what is the same."""
    whole = [record.spec.model_dump(mode="json") for record in (one, two)]
    specs = [what_decides(spec) for spec in whole]
    names = _data_of(two)
    for spec, before in zip(specs, whole, strict=True):
        spec["init"] = {key: value for key, value in before["init"].items() if key != "name" or not _same_parent(one, two)}
        if isinstance(spec.get("data"), list):
            spec["data"] = dict(zip(names if len(names) == len(spec["data"]) else before["data"], spec["data"], strict=True))
    yield from unequal(*specs, ignored=("hash",))
    yield from _other_contents(one, two)


def _same_parent(one: RunRecord, two: RunRecord) -> bool:
    a, b = one.spec.init, two.spec.init
    return isinstance(a, RunBackbone) and isinstance(b, RunBackbone) and a.hash == b.hash


def _other_contents(one: RunRecord, two: RunRecord) -> Iterator[str]:
    """Which data, or initial backbone, of one specification held something else."""
    then, now = one.contents, two.contents
    if then is None or now is None:
        return
    names = _data_of(two)
    # how many there are follows from the specification, which `_unequal_specs` has compared
    changed = [i for i, pair in enumerate(zip(then.data, now.data, strict=False)) if pair[0] != pair[1]]
    of_each = len(names) == len(now.data)  # a curation chooses from several
    yield from dict.fromkeys(f"{names[i] if of_each else 'its data'}: another content" for i in changed)
    if then.init != now.init and (_same_parent(one, two) or one.spec.init == two.spec.init):
        yield "its initial backbone: another content"


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
    alone = [f"only in {where}: {', '.join(runs)}" for where, runs in zip(("the first", "the second"), found.alone, strict=True) if runs]
    why = ["runs that no run of the other folder was made like: " + "; ".join(alone)] if alone else []
    return "\n".join([*(renamed.text for renamed in found.renamed), *why, *lines, f"{found.equal} numbers are equal, {counts}"])


def write_changes(found: Comparison, path: Path) -> None:
    """Write what is renamed and the changes as CSV, one line each."""
    renamed: list[tuple[str, ...]] = [("renamed", *[""] * (len(COLUMNS) - 2), one.text) for one in found.renamed]
    rows: list[tuple[str, ...]] = [
        (c.kind, c.run, str(c.seed), c.evaluation, c.metric, fixed(c.before, 6), fixed(c.after, 6), c.difference, "; ".join(c.why))
        for c in found.changes
    ]
    write_csv(pd.DataFrame(renamed + rows, columns=list(COLUMNS), dtype=str), path)
