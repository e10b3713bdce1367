"""What has become of a study: its runs, how far they are, and what they have cost, from the files they leave. Free of torch.

    densewalk status config.yaml

    run           seed  state     step           loss    left     seen        checkpoint  GPU-h  evaluations
    dora_venice      0  done      40000/40000                                               31.20  4 of 4
    neco_dora        0  started   1200/5000      2.3412  1:05:20  0:00:12 ago       1180   0.41  0 of 4
    neco_dora        1  waiting                                                              0.00  0 of 4

`left` goes by the median time of the latest steps, whatever was before an interruption; `seen` is the age of the latest sign of
life. A job that Slurm has killed looks like one between two signs: `squeue` knows better.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from densewalk.core.progress import clock, columns
from densewalk.results.records import read_run
from densewalk.study.config import Study
from densewalk.training.metrics_file import Point, read_points

LATEST = 50  # points of the learning curve that `left` goes by


@dataclass(frozen=True)
class Status:
    """One run with one seed.

    total: steps in all, None before the training has started. left: seconds. seen: seconds since the latest sign of life.
    checkpoint: step of the newest one. gpu_hours: spent, of a training that is not done by the time of its steps.
    """

    run: str
    seed: int
    state: str  # waiting, started, done
    evaluations: tuple[int, int]  # done, of how many
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    left: float | None = None
    seen: float | None = None
    checkpoint: int | None = None
    gpu_hours: float = 0.0


def status(study: Study, results: Path, now: float | None = None) -> Iterator[Status]:
    """Every run and seed of the study in its order.

    Args:
        results: the study's folder of results.
        now: the time, in seconds since 1970.
    """
    now = time.time() if now is None else now
    wanted = list(study.evaluation_jobs())
    for run, seed in study.jobs():
        out = results / run / f"s{seed}"
        names = [name for r, s, name in wanted if (r, s) == (run, seed)]
        evaluations = (sum((out / f"{name}.json").is_file() for name in names), len(names))
        if (out / "backbone.safetensors").is_file():
            yield _done(run, seed, evaluations, out)
        else:
            yield _unfinished(run, seed, evaluations, study.run_spec(run, seed).state(results), now)


def _done(run: str, seed: int, evaluations: tuple[int, int], out: Path) -> Status:
    training = read_run(out / "run.json").training
    if training is None:
        return Status(run, seed, "done", evaluations)
    return Status(run, seed, "done", evaluations, training.steps, training.steps, gpu_hours=training.gpu_hours or 0.0)


def _unfinished(run: str, seed: int, evaluations: tuple[int, int], state: Path, now: float) -> Status:
    plan, curve = state / "plan.json", read_points(state / "metrics.jsonl")
    if not plan.is_file():
        return Status(run, seed, "waiting", evaluations)
    planned = json.loads(plan.read_text())
    seals = sorted(state.glob("step-*.json"))
    checkpoint = json.loads(seals[-1].read_text())["step"] if seals else None
    step = max(curve[-1]["step"] + 1 if curve else 0, checkpoint or 0)
    each = seconds_a_step(curve[-LATEST:])
    signs = [path.stat().st_mtime for path in (plan, state / "metrics.jsonl", *seals[-1:]) if path.is_file()]
    return Status(
        run,
        seed,
        "started",
        evaluations,
        step=step,
        total=planned["steps"],
        loss=curve[-1]["loss"] if curve else None,
        left=None if each is None else each * (planned["steps"] - step),
        seen=max(0.0, now - max(signs)),
        checkpoint=checkpoint,
        gpu_hours=step * (seconds_a_step(curve) or 0.0) * planned["gpus"] / 3600,
    )


def seconds_a_step(curve: Sequence[Point]) -> float | None:
    """Median over the curve's intervals of the time of a step, which an interruption does not change; None without an interval."""
    rates = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(curve)]
    return statistics.median(rates) if rates else None


def table(rows: Sequence[Status]) -> str:
    """The rows as text, and their sum."""
    heads = ("run", "seed", "state", "step", "loss", "left", "seen", "checkpoint", "GPU-h", "evaluations")
    done, hours = sum(row.state == "done" for row in rows), sum(row.gpu_hours for row in rows)
    evaluated = [sum(row.evaluations[i] for row in rows) for i in (0, 1)]
    return "\n".join(
        [
            columns(heads, map(_cells, rows)),
            f"{done} of {len(rows)} runs, {evaluated[0]} of {evaluated[1]} evaluations, {hours:.2f} GPU-hours",
        ]
    )


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
        f"{row.evaluations[0]} of {row.evaluations[1]}",
    )
