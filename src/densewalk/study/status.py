"""How far a study is, when it ends and what it has cost, from the files that its jobs leave. Free of torch.

    densewalk status config.yaml

    run           seed  state     step           loss    left     seen        checkpoint  GPU-h  evaluations
    dora_venice      0  done      40000/40000                                               31.20  3 of 4, 1 failed
    neco_dora        0  started   1200/5000      2.3412  1:05:20  0:00:12 ago       1180   0.41  0 of 4
    neco_dora        1  waiting                                                              0.00  0 of 4

`left` goes by the median time of the latest steps, whatever was before an interruption; `seen` is the age of the latest sign of
life. A job that Slurm has killed looks like one between two signs: `squeue` knows better.
"""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from densewalk.core.progress import clock, columns
from densewalk.results.missing import survey
from densewalk.results.records import TrainingRecord, read_run
from densewalk.study.config import Study
from densewalk.training.progress_files import PLAN, Point, TrainingPlan, newest_seal, read_or_none, read_points

LATEST = 50  # points of the learning curve that `left` goes by


@dataclass(frozen=True)
class Status:
    """One run with one seed.

    problems: how many of its results are outdated or have failed. total: steps in all, None before the training has started.
    left: seconds. seen: seconds since the latest sign of life. checkpoint: step of the newest one. gpu_hours: spent, of a training
    that is not done by the time of its steps.
    """

    run: str
    seed: int
    state: str  # waiting, started, failed, done
    evaluations: tuple[int, int]  # done, of how many
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    left: float | None = None
    seen: float | None = None
    checkpoint: int | None = None
    gpu_hours: float = 0.0
    problems: str = ""


def status(study: Study, results: Path, now: float | None = None) -> Iterator[Status]:
    """Report on every run and seed of the study in its order.

    Args:
        results: the study's folder of results. now: the time, in seconds since 1970.
    """
    now = time.time() if now is None else now
    for outputs in survey(study.plan(), results):
        run, seed = outputs.backbone.run, outputs.backbone.seed
        found = Counter(result.state for result in outputs.results)
        row = Status(
            run,
            seed,
            "failed" if outputs.backbone.state == "failed" else "waiting",
            (found["there"], len(outputs.results)),
            problems="".join(f", {found[state]} {state}" for state in ("failed", "outdated") if found[state]),
        )
        if outputs.backbone.state == "there":
            yield _done(row, read_run(results / run / f"s{seed}" / "run.json").training)
        else:
            yield _unfinished(row, study.run_spec(run, seed).state(results), now)


def _done(row: Status, training: TrainingRecord | None) -> Status:
    if training is None:
        return replace(row, state="done")
    return replace(row, state="done", step=training.steps, total=training.steps, gpu_hours=training.gpu_hours or 0.0)


def _unfinished(row: Status, state: Path, now: float) -> Status:
    plan, curve = state / PLAN, read_points(state / "metrics.jsonl")
    if not plan.is_file():
        return row
    planned = read_or_none(plan, TrainingPlan)
    seals = sorted(state.glob("step-*.json"))
    seal = newest_seal(state)
    checkpoint = seal.step if seal else None
    step = max(curve[-1]["step"] + 1 if curve else 0, checkpoint or 0)
    pace = seconds_per_step(curve[-LATEST:])
    signs = [path.stat().st_mtime for path in (plan, state / "metrics.jsonl", *seals[-1:]) if path.is_file()]
    return replace(
        row,
        state="failed" if row.state == "failed" else "started",
        step=step,
        total=planned.steps if planned else None,
        loss=curve[-1].get("loss") if curve else None,
        left=None if pace is None or planned is None else pace * (planned.steps - step),
        seen=max(0.0, now - max(signs)),
        checkpoint=checkpoint,
        gpu_hours=step * (seconds_per_step(curve) or 0.0) * (planned.gpus if planned else 0) / 3600,
    )


def seconds_per_step(curve: Sequence[Point]) -> float | None:
    """Median over the curve's intervals of the time of a step, which an interruption does not change; None without an interval."""
    rates = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(curve)]
    return statistics.median(rates) if rates else None


def table(rows: Sequence[Status]) -> str:
    """The rows as text, and their sum."""
    heads = ("run", "seed", "state", "step", "loss", "left", "seen", "checkpoint", "GPU-h", "evaluations")
    done, hours = sum(row.state == "done" for row in rows), sum(row.gpu_hours for row in rows)
    evaluated, wanted = (sum(row.evaluations[i] for row in rows) for i in (0, 1))
    total = f"{done} of {len(rows)} runs, {evaluated} of {wanted} evaluations, {hours:.2f} GPU-hours"
    return f"{columns(heads, map(_cells, rows))}\n{total}"


def _cells(row: Status) -> tuple[str, ...]:
    return (
        row.run,
        str(row.seed),
        row.state,
        f"{row.step}/{row.total}" if row.total is not None else "",
        f"{row.loss:.4f}" if row.loss is not None else "",
        clock(row.left) if row.left is not None else "",
        f"{clock(row.seen)} ago" if row.seen is not None else "",
        str(row.checkpoint) if row.checkpoint is not None else "",
        f"{row.gpu_hours:.2f}",
        f"{row.evaluations[0]} of {row.evaluations[1]}{row.problems}",
    )
