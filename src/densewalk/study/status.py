"""How far a study is, when it ends and what it has cost, from the files that its jobs leave. Free of torch.

    densewalk status config.yaml

    run           seed  state     step           loss    left     seen        checkpoint  GPU-h  CPU-h  evaluations
    dora_venice      0  done      40000/40000                                               31.20   0.00  3 of 4, 1 failed
    neco_dora        0  running   1200/5000      2.3412  1:05:20  0:00:12 ago       1180   0.41   0.00  0 of 4
    neco_dora        1  waiting                                                              0.00   0.00  0 of 4

What is done, outdated, running or missing is decided where the workflow and the page ask, too: results/missing.py,
whose words for a state these are. `left` goes by the
median time of the latest steps, whatever was before an interruption; `seen` is the age of the latest sign of life. Hours are those of a
run and its evaluations: of GPUs, and for processes that had none the CPU time of all of them; of records without it, and of a training
that is not done, time × processes. A job that Slurm has killed looks like one between two signs: `squeue`
knows better.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from densewalk.core.progress import clock, columns
from densewalk.results.missing import FINISHED, RunOutputs, State, survey
from densewalk.results.records import ResultRecord, RunRecord, TrainingRecord
from densewalk.study.config import Study
from densewalk.study.runs import BaseRun, TrainedRun
from densewalk.training.progress_files import PLAN, CostRecord, Point, TrainingPlan, newest_seal, read_or_none, read_points

COUNTED: tuple[State, ...] = ("failed", "outdated", "running", "removed")  # results that a row tells of
LATEST = 50  # points of the learning curve that `left` goes by


@dataclass(frozen=True)
class Status:
    """One run with one seed.

    problems: how many of its results are in one of the states `COUNTED`. failed: what has failed, with the error and the log. total:
    steps in all, None before the training has started. left: seconds. seen: seconds since the latest sign of life. checkpoint: step of the
    newest one. gpu_hours, cpu_hours: spent, of a training that is not done by the time of its steps. running: what is worked on now, and
    by whom. to_do: seconds of each job that is to be done, None where no earlier job tells.
    """

    run: str
    seed: int
    state: State
    evaluations: tuple[int, int]  # done, of how many
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    left: float | None = None
    seen: float | None = None
    checkpoint: int | None = None
    gpu_hours: float = 0.0
    problems: str = ""
    cpu_hours: float = field(default=0.0, compare=False)
    running: tuple[str, ...] = ()
    failed: tuple[str, ...] = field(default=(), compare=False)
    to_do: tuple[float | None, ...] = field(default=(), compare=False)


def status(study: Study, results: Path, now: float | None = None) -> Iterator[Status]:
    """Report on every run and seed of the study in its order.

    Args:
        results: the study's folder of results. now: the time, in seconds since 1970.
    """
    now = time.time() if now is None else now
    found = list(survey(study.plan(), results))
    pace = Pace(found)
    for outputs in found:
        backbone, run, seed = outputs.backbone, outputs.backbone.run, outputs.backbone.seed
        count = Counter(result.state for result in outputs.results)
        gpu, cpu = _hours([output.record for output in outputs.results])
        row = Status(
            run,
            seed,
            backbone.state,
            (count["done"], len(outputs.results)),
            problems="".join(f", {count[state]} {state}" for state in COUNTED if count[state]),
            running=tuple(output.text for output in (backbone, *outputs.results) if output.state == "running"),
            failed=tuple(f"{output.text}; log: {output.log}" for output in (backbone, *outputs.results) if output.state == "failed"),
        )
        if backbone.state in FINISHED:
            training = backbone.record.training if isinstance(backbone.record, RunRecord) else None
            row = _done(row, training)
        else:
            row = _unfinished(row, study.run_spec(run, seed).state(results), now)
        yield replace(
            row,
            gpu_hours=row.gpu_hours + gpu,
            cpu_hours=row.cpu_hours + cpu,
            to_do=tuple(pace.to_do(outputs, row.left, study.runs[run])),
        )


class Pace:
    """How long jobs have taken that are done, as a guess for those that are not."""

    def __init__(self, found: Sequence[RunOutputs]) -> None:
        self.trainings: dict[str, list[tuple[float, int]]] = defaultdict(list)  # seconds and steps
        self.evaluations: dict[str, list[float]] = defaultdict(list)
        for outputs in found:
            if isinstance(outputs.backbone.record, RunRecord) and (training := outputs.backbone.record.training):
                for name in (outputs.backbone.run, outputs.backbone.record.spec.method):
                    self.trainings[name].append((training.seconds, training.steps))
            for output in outputs.results:
                if isinstance(output.record, ResultRecord):
                    self.evaluations[output.record.evaluation].append(output.record.seconds)

    def to_do(self, outputs: RunOutputs, left: float | None, run: BaseRun) -> Iterator[float | None]:
        """Seconds of each job that is to be done: of a training by its own steps, the run's other seeds, or the method's other runs.

        Where the study says how many steps, these count: what was trained may have had others.
        """
        if outputs.backbone.state != "done" and isinstance(run, TrainedRun):
            known = self.trainings.get(outputs.backbone.run) or self.trainings.get(run.method) or []
            steps = run.settings.steps
            yield left if left is not None else _median([seconds * (steps or made) / made for seconds, made in known])
        for output in outputs.results:
            if output.state != "done":
                yield _median(self.evaluations.get(output.evaluation or ""))


def _median(seconds: Sequence[float] | None) -> float | None:
    return statistics.median(seconds) if seconds else None


def _hours(records: Iterable[CostRecord | RunRecord | None]) -> tuple[float, float]:
    """Hours of GPUs, and of the CPUs of processes without one."""
    costs = [record for record in records if isinstance(record, CostRecord)]
    gpu = sum(cost.gpu_hours or 0.0 for cost in costs)
    return gpu, sum((cost.seconds if cost.cpu_seconds is None else cost.cpu_seconds) / 3600 for cost in costs if not cost.gpu_hours)


def _done(row: Status, training: TrainingRecord | None) -> Status:
    if training is None:
        return row
    gpu = training.gpu_hours or 0.0
    cpu = training.process_hours if training.cpu_seconds is None else training.cpu_seconds / 3600
    cpu = 0.0 if gpu else cpu
    return replace(row, step=training.steps, total=training.steps, gpu_hours=gpu, cpu_hours=cpu)


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
    hours = step * (seconds_per_step(curve) or 0.0) / 3600
    signs = [path.stat().st_mtime for path in (plan, state / "metrics.jsonl", *seals[-1:]) if path.is_file()]
    return replace(
        row,
        state=row.state if row.state in ("failed", "running", "removed") else "not finished",
        step=step,
        total=planned.steps if planned else None,
        loss=curve[-1].get("loss") if curve else None,
        left=None if pace is None or planned is None else pace * (planned.steps - step),
        seen=max(0.0, now - max(signs)),
        checkpoint=checkpoint,
        gpu_hours=hours * (planned.gpus if planned else 0),
        cpu_hours=0.0 if planned and planned.gpus else hours,
    )


def seconds_per_step(curve: Sequence[Point]) -> float | None:
    """Median over the curve's intervals of the time of a step, which an interruption does not change; None without an interval."""
    rates = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(curve)]
    return statistics.median(rates) if rates else None


def table(rows: Sequence[Status]) -> str:
    """The rows as text, and their sum."""
    heads = ("run", "seed", "state", "step", "loss", "left", "seen", "checkpoint", "GPU-h", "CPU-h", "evaluations")
    done, gpu, cpu = sum(row.state == "done" for row in rows), sum(row.gpu_hours for row in rows), sum(row.cpu_hours for row in rows)
    evaluated, wanted = (sum(row.evaluations[i] for row in rows) for i in (0, 1))
    total = f"{done} of {len(rows)} runs, {evaluated} of {wanted} evaluations, {gpu:.2f} GPU-hours, {cpu:.2f} CPU-hours"
    return "\n".join([columns(heads, map(_cells, rows)), total, *_outlook(rows)])


def _outlook(rows: Sequence[Status]) -> Iterator[str]:
    """What is left to do, and what of it is worked on now."""
    jobs = [seconds for row in rows for seconds in row.to_do]
    known = [seconds for seconds in jobs if seconds is not None]
    if known:
        others = f"; {len(jobs) - len(known)} more, whose time no earlier job tells" if len(jobs) > len(known) else ""
        yield f"left: about {clock(sum(known))} for {len(known)} jobs one after another{others}"
    elif jobs:
        yield f"left: {len(jobs)} jobs, whose time no earlier job tells"
    yield from (f"now: {text}" for row in rows for text in row.running)
    yield from (f"failed: {text}" for row in rows for text in row.failed)


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
        f"{row.cpu_hours:.2f}",
        f"{row.evaluations[0]} of {row.evaluations[1]}{row.problems}",
    )
