"""What a folder of results holds of a study: what is there, outdated or missing, and why as far as logs tell. Free of torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from densewalk.core.text.attempts import is_done, latest_attempt
from densewalk.results.changes import Changes
from densewalk.results.plan import Plan, result_key, run_key, state_folder
from densewalk.results.records import ResultRecord, RunRecord
from densewalk.training.progress_files import holder

State = Literal["done", "outdated", "running", "failed", "not finished", "removed", "not started", "waiting"]
"""The words of `densewalk status`, `plan` and `why`, of the page, and of the summary of a dry run."""
FINISHED: tuple[State, ...] = ("done", "outdated")
GONE = "it was made, and its file is gone; Snakemake makes it again"


@dataclass(frozen=True)
class Output:
    """A backbone (evaluation: None) or a result of the plan.

    state: `outdated` is what would be made otherwise today (results/changes.py), `running` what somebody works on now, `not finished`
    one that was begun and whose log has no error, `removed` one whose log says that it was made, `waiting` one that needs another output
    first. record: of what is there.
    """

    run: str
    seed: int
    evaluation: str | None
    state: State
    why: str = ""
    log: str = ""
    record: RunRecord | ResultRecord | None = field(default=None, compare=False, repr=False)
    trains: bool = True  # False of a run that is a backbone as it is
    results: int = field(default=0, compare=False)  # of a missing backbone: how many results need it

    @property
    def text(self) -> str:
        """One line for people."""
        verb = {"failed": "has ", "removed": "was "}.get(self.state, "is ")
        why = f" ({self.why})" if self.why else ""
        state = "not made yet" if self.state == "not started" and not self.trains else self.state
        what = self.evaluation or ("the training" if self.trains else "the backbone")
        return f"{self.run}, seed {self.seed}: {what} {verb}{state}{why}"


@dataclass(frozen=True)
class RunOutputs:
    """The outputs of one run and seed."""

    backbone: Output
    results: list[Output]

    @property
    def missing(self) -> list[Output]:
        """What a reader of the results must be told: nobody misses the backbone where all results are there."""
        outdated = [output for output in (self.backbone, *self.results) if output.state == "outdated"]
        absent = [result for result in self.results if result.state not in FINISHED]
        if self.backbone.state not in FINISHED and (absent or not self.results):
            absent = [replace(self.backbone, results=len(absent))]
        return outdated + absent


def survey(plan: Plan, results: Path) -> Iterator[RunOutputs]:
    """Look for everything of the plan in a folder of results."""
    changes = Changes(plan, results)
    for run, planned in plan.runs.items():
        for seed in planned.seeds:
            backbone = _backbone(changes, run, seed)
            backbone = replace(backbone, trains=bool(planned.data))
            yield RunOutputs(backbone, [_result(changes, backbone, name) for name in plan.evaluations_of(run, seed)])
    changes.contents.save()


def not_current(plan: Plan, results: Path, keys: Iterable[tuple[str, int, str]]) -> Iterator[str]:
    """A line for each run and evaluation that the plan does not have, or whose results are outdated, with its seeds.

    Args:
        keys: run, seed and evaluation of results that are there.
    """
    changes = Changes(plan, results)
    found: dict[tuple[str, str, str], list[int]] = {}
    for run, seed, evaluation in dict.fromkeys(keys):
        if result_key(run, seed, evaluation) not in plan.hashes:
            found.setdefault((run, evaluation, "not in the study"), []).append(seed)
        elif reasons := changes.of_result(run, seed, evaluation):
            found.setdefault((run, evaluation, f"outdated ({'; '.join(reasons)})"), []).append(seed)
    changes.contents.save()
    for (run, evaluation, why), seeds in found.items():
        yield f"{run}:{evaluation}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {why}"


def _backbone(changes: Changes, run: str, seed: int) -> Output:
    plan, results = changes.plan, changes.results
    planned = plan.backbones.get(run_key(run, seed))
    if planned and (who := holder(state_folder(results, planned.hash, run, seed))):
        return Output(run, seed, None, "running", f"by {who}")
    if changes.is_made(run, seed) if planned else (results / run_key(run, seed) / "backbone.safetensors").is_file():
        reasons = changes.of_run(run, seed)
        return Output(run, seed, None, "outdated" if reasons else "done", "; ".join(reasons), record=changes.run_record(run, seed))
    init = plan.runs[run].init
    if init in plan.runs:
        seeds = plan.runs[init].seeds
        init_seed = seed if seed in seeds else seeds[0]
        if not (results / run_key(init, init_seed) / "backbone.safetensors").is_file():
            return Output(run, seed, None, "waiting", f"for {init}, seed {init_seed}")
    return Output(run, seed, None, *state_by_log(results / "logs" / run_key(run, seed) / "train.log"))


def _result(changes: Changes, backbone: Output, evaluation: str) -> Output:
    run, seed = backbone.run, backbone.seed
    key = result_key(run, seed, evaluation)
    if who := holder(state_folder(changes.results, changes.plan.hashes[key], run, seed, evaluation)):
        return Output(run, seed, evaluation, "running", f"by {who}")
    if record := changes.result_record(run, seed, evaluation):
        reasons = changes.of_result(run, seed, evaluation)
        return Output(run, seed, evaluation, "outdated" if reasons else "done", "; ".join(reasons), record=record)
    if backbone.state not in FINISHED:
        return Output(run, seed, evaluation, "waiting", "for the training" if backbone.trains else "for the backbone")
    return Output(run, seed, evaluation, *state_by_log(changes.results / "logs" / f"{key}.log"))


def state_by_log(log: Path) -> tuple[State, str, str]:
    """State, reason and log of a job whose output is not there, by what it last wrote."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    if not text.strip():
        return "not started", "", ""
    if is_done(text):
        return "removed", GONE, str(log)
    lines = [line.strip() for line in latest_attempt(text).splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if "error" in line.lower()]
    return ("failed", errors[-1], str(log)) if errors else ("not finished", lines[-1] if lines else "", str(log))
