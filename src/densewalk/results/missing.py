"""What a study should have and has not, and why, as far as logs tell. Free of torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densewalk.results.plan import Plan
from densewalk.results.records import read_result


@dataclass(frozen=True)
class Gap:
    """A backbone or a result that is not there, or is of another configuration. evaluation: None for a backbone.

    state: `failed`, `not finished` (its log has no error), `not started`, `waits` for another run, or `outdated`.
    """

    run: str
    seed: int
    evaluation: str | None
    state: str
    why: str
    log: str

    @property
    def text(self) -> str:
        """One line for people."""
        what = f"{self.run}, seed {self.seed}: " + ("the training" if self.evaluation is None else self.evaluation)
        return f"{what} {'has ' if self.state == 'failed' else 'is ' if self.state != 'waits' else ''}{self.state}" + (
            f" ({self.why})" if self.why else ""
        )


def gaps(plan: Plan, results: Path) -> Iterator[Gap]:
    """Every backbone and result of the plan that is not there; of a run without a backbone, no evaluation that is not there.

    A result that is there but was made by another configuration than the plan's is `outdated`: it may be shown, not trusted.
    """
    for run, planned in plan.runs.items():
        for seed in planned.seeds:
            out = results / run / f"s{seed}"
            yield from _outdated(plan, run, seed, out)
            if not (out / "backbone.safetensors").is_file() and not evaluated(plan, run, out):
                yield _backbone(plan, results, run, seed)
                continue
            for name in plan.wanted(run):
                if not (out / f"{name}.json").is_file():
                    yield Gap(run, seed, name, *_by_log(results / "logs" / run / f"s{seed}" / f"{name}.log"))


def _outdated(plan: Plan, run: str, seed: int, out: Path) -> Iterator[Gap]:
    for name in plan.wanted(run):
        path = out / f"{name}.json"
        if path.is_file() and read_result(path).config_hash != plan.hashes[f"{run}/s{seed}/{name}"]:
            yield Gap(
                run, seed, name, "outdated", "made by another configuration than the study's is now; Snakemake will make it again", ""
            )


def evaluated(plan: Plan, run: str, out: Path) -> bool:
    """Whether all results of a run and seed are there; then nobody misses its backbone."""
    names = plan.wanted(run)
    return bool(names) and all((out / f"{name}.json").is_file() for name in names)


def _backbone(plan: Plan, results: Path, run: str, seed: int) -> Gap:
    init = plan.runs[run].init
    if init in plan.runs:
        seeds = plan.runs[init].seeds
        theirs = seed if seed in seeds else seeds[0]
        if not (results / init / f"s{theirs}" / "backbone.safetensors").is_file():
            return Gap(run, seed, None, "waits", f"for {init}, seed {theirs}", "")
    return Gap(run, seed, None, *_by_log(results / "logs" / run / f"s{seed}" / "train.log"))


def _by_log(log: Path) -> tuple[str, str, str]:
    """State, reason and log of a job by what it last wrote."""
    if not log.is_file():
        return "not started", "", ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if "error" in line.lower()]
    return ("failed", errors[-1], str(log)) if errors else ("not finished", lines[-1] if lines else "", str(log))
