"""What a folder of results holds of a study: what is there, outdated or missing, and why as far as logs tell. Free of torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from densewalk.results.plan import Plan, result_key
from densewalk.results.records import read_result

State = Literal["there", "outdated", "failed", "not finished", "not started", "waits"]


@dataclass(frozen=True)
class Output:
    """A backbone (evaluation: None) or a result of the plan.

    state: `outdated` is a result of another configuration than the study's is now, `not finished` one whose log has no error,
    `waits` one that needs another output first.
    """

    run: str
    seed: int
    evaluation: str | None
    state: State
    why: str = ""
    log: str = ""

    @property
    def text(self) -> str:
        """One line for people."""
        verb = {"failed": "has ", "waits": ""}.get(self.state, "is ")
        why = f" ({self.why})" if self.why else ""
        return f"{self.run}, seed {self.seed}: {self.evaluation or 'the training'} {verb}{self.state}{why}"


@dataclass(frozen=True)
class RunOutputs:
    """The outputs of one run and seed."""

    backbone: Output
    results: list[Output]

    @property
    def missing(self) -> list[Output]:
        """What a reader of the results must be told: nobody misses the backbone where all results are there."""
        outdated = [result for result in self.results if result.state == "outdated"]
        absent = [result for result in self.results if result.state not in ("there", "outdated")]
        if self.backbone.state != "there" and (absent or not self.results):
            absent = [self.backbone]
        return outdated + absent


def survey(plan: Plan, results: Path) -> Iterator[RunOutputs]:
    """Look for everything of the plan in a folder of results."""
    for run, planned in plan.runs.items():
        for seed in planned.seeds:
            backbone = _backbone(plan, results, run, seed)
            yield RunOutputs(backbone, [_result(plan, results, backbone, name) for name in plan.evaluations_of(run)])


def _backbone(plan: Plan, results: Path, run: str, seed: int) -> Output:
    if (results / run / f"s{seed}" / "backbone.safetensors").is_file():
        return Output(run, seed, None, "there")
    init = plan.runs[run].init
    if init in plan.runs:
        seeds = plan.runs[init].seeds
        init_seed = seed if seed in seeds else seeds[0]
        if not (results / init / f"s{init_seed}" / "backbone.safetensors").is_file():
            return Output(run, seed, None, "waits", f"for {init}, seed {init_seed}")
    return Output(run, seed, None, *_by_log(results / "logs" / run / f"s{seed}" / "train.log"))


def _result(plan: Plan, results: Path, backbone: Output, evaluation: str) -> Output:
    run, seed = backbone.run, backbone.seed
    key = result_key(run, seed, evaluation)
    path = results / f"{key}.json"
    if path.is_file():
        if read_result(path).config_hash == plan.hashes[key]:
            return Output(run, seed, evaluation, "there")
        why = "made by another configuration than the study's is now; Snakemake will make it again"
        return Output(run, seed, evaluation, "outdated", why)
    if backbone.state != "there":
        return Output(run, seed, evaluation, "waits", "for the training")
    return Output(run, seed, evaluation, *_by_log(results / "logs" / f"{key}.log"))


def _by_log(log: Path) -> tuple[State, str, str]:
    """State, reason and log of a job by what it last wrote."""
    if not log.is_file():
        return "not started", "", ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if "error" in line.lower()]
    return ("failed", errors[-1], str(log)) if errors else ("not finished", lines[-1] if lines else "", str(log))
