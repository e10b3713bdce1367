"""Find results whose run or evaluation has another name in the study now, so that they are moved and not made again.

Without `densewalk rename` a new name has no results, and a training would begin from its first step. Only names without any result are
looked at, and only folders and records under names that the study does not have.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from densewalk.core.errors import UserError
from densewalk.results.changes import Changes
from densewalk.results.plan import result_key, run_key
from densewalk.results.records import ResultRecord, RunRecord, read_result, read_run, results_in

Record = TypeVar("Record", RunRecord, ResultRecord)


@dataclass(frozen=True)
class Forgotten:
    """Results under a name that the study had. kind: run or evaluation. place: a folder or file of them."""

    kind: str
    old: str
    new: str
    place: Path

    def text(self, config: str | Path) -> str:
        """One line for people. config: the study's file, from where they are."""
        done = "trained" if self.kind == "run" else "evaluated"
        command = f"densewalk rename {shlex.quote(str(config))} {self.old} {self.new}"
        return f"{self.place} is the {self.kind} {self.new} under its old name: `{command}` moves it, nothing is {done} again"


def forgotten(changes: Changes) -> Iterator[Forgotten]:
    """Yield what the study's runs and evaluations without results were called before: same specification, same contents.

    Interrupted trainings count, too. A record that cannot be read is no candidate.
    """
    runs = {found.new: found for found in _runs(changes)}
    yield from runs.values()
    yield from _evaluations(changes, {new: found.old for new, found in runs.items()})


def _runs(changes: Changes) -> Iterator[Forgotten]:
    plan, results = changes.plan, changes.results
    wanted = [run for run in plan.runs if not any((results / run_key(run, seed) / "run.json").exists() for seed in plan.runs[run].seeds)]
    others: list[tuple[Path, RunRecord]] = []
    for path in sorted(results.glob("*/s*/run.json")) if wanted else ():
        name = path.parent.parent.name
        if name not in plan.runs and (record := _read(read_run, path)):
            others.append((path.parent.parent, record))
    for run in wanted:
        planned = [(seed, plan.backbones[run_key(run, seed)]) for seed in plan.runs[run].seeds]
        by_record = (folder for seed, one in planned for folder, record in others if record.spec.seed == seed and changes.fits(record, one))
        by_state = (state for seed, one in planned for state in sorted(results.glob(f"state/*-s{seed}-{one.hash}")))
        if (folder := next(by_record, None)) is not None:
            yield Forgotten("run", folder.name, run, folder)
            continue
        names = {re.sub(r"-s\d+-[0-9a-f]{12}$", "", state.name): state for state in by_state}
        if run not in names:  # a training that goes on under the name that it has
            yield from (Forgotten("run", old, run, state) for old, state in list(names.items())[:1] if old not in plan.runs)


def _evaluations(changes: Changes, renamed: dict[str, str]) -> Iterator[Forgotten]:
    """Of evaluations. renamed: what runs are still called in the folder of results, by the study's name."""
    plan, results = changes.plan, changes.results
    jobs = [(renamed.get(run, run), run, seed, name) for run, seed, name in plan.jobs()]
    made = {name for folder, _, seed, name in jobs if (results / result_key(folder, seed, name)).with_suffix(".json").exists()}
    wanted = {(folder, seed, plan.hashes[result_key(run, seed, name)]): name for folder, run, seed, name in jobs if name not in made}
    found: dict[str, Forgotten] = {}
    for path in results_in(results) if wanted else ():
        if path.stem in plan.evaluations or (record := _read(read_result, path)) is None:
            continue
        new = wanted.get((record.run, record.seed, record.config_hash))
        if new is not None:
            found.setdefault(new, Forgotten("evaluation", path.stem, new, path))
    yield from found.values()


def _read(read: Callable[[Path], Record], path: Path) -> Record | None:
    """A record; None of a file that is damaged, of another version or no record, which is nobody's former name."""
    try:
        return read(path)
    except UserError:
        return None
