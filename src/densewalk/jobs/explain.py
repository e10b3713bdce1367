"""Score one backbone while the settings of one evaluation turn, step by step, into those of another.

results/explain/{A}-{B}/{run}-s{seed}/      see results/ladder.py

Steps, joins and order: study/ladder/steps.py. Features are computed once for each set that the steps ask for (models/feature_cache.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.core.machine import usable_workers
from densewalk.core.progress import log
from densewalk.core.typed_files import read_model, write_model
from densewalk.data.fingerprint import fingerprint
from densewalk.evaluations.common.base import Job
from densewalk.evidence.orders import SampledShares, draw_orders, prefixes, sampled_shapley
from densewalk.evidence.shares import interactions, one_at_a_time, shapley
from densewalk.jobs.inputs import feature_cache
from densewalk.results.ladder import Explained, LadderScore, StepShare, write_ladder
from densewalk.results.records import read_run
from densewalk.study.config import Study
from densewalk.study.ladder.steps import Ladder, make_ladder
from densewalk.study.registry import evaluation_module
from densewalk.study.specs import EvaluationSpec
from densewalk.training.execution import Execution

EXACT = 6  # up to so many steps all combinations are scored


@dataclass(frozen=True)
class Question:
    """What to explain. metric: the evaluation's first one if None. limit: most scorings. pairs: of sampled orders, beyond `EXACT` steps."""

    a: str
    b: str
    run: str
    seed: int | None = None
    metric: str | None = None
    limit: int = 64
    pairs: int = 4


@dataclass(frozen=True)
class Answer:
    """A ladder, the orders that are sampled (none where all combinations are scored), and the combinations to score in their order."""

    ladder: Ladder
    orders: list[list[int]]
    subsets: list[int]

    def describe(self) -> Iterator[str]:
        """Steps and costs as lines."""
        names, steps = self.ladder.names, self.ladder.steps
        for step in steps:
            start, end = self.ladder.values(step)
            yield f"{step}: {start} -> {end}" + (f" (not alone: {step.reason})" if step.reason else "")
        reads = {read for subset in self.subsets for read in self.ladder.features_of(subset)}
        trainings = len(self.subsets) if self.ladder.a.LEARNS else 0
        how = f"{len(self.orders)} sampled orders" if self.orders else "all combinations"
        costs = f"{len(reads)} sets of features, {trainings} trainings, {len(self.subsets)} scorings"
        yield f"{len(steps)} steps from {names[0]} to {names[1]}, {how}: {costs}"


def answer(study: Study, question: Question, results: Path, execution: Execution, *, only_plan: bool) -> Iterator[str]:
    """Score what a question asks for, unless only the plan is wanted; the plan and what was found as lines."""
    planned = plan(study, question)
    yield from planned.describe()
    if not only_plan:
        yield from text(explain(study, question, planned, results, execution))


def plan(study: Study, question: Question) -> Answer:
    """The steps and what they cost.

    Raises:
        UserError: unknown names, evaluations that are not comparable, or more scorings than the limit.
    """
    _require(question.run, study.runs, "run")
    for name in (question.a, question.b):
        _require(name, study.evaluations, "evaluation")
    ladder = make_ladder(question.a, study.evaluations[question.a].settings, question.b, study.evaluations[question.b].settings)
    _require(metric_of(ladder, question), ladder.a.METRICS, "metric")
    steps = len(ladder.steps)
    orders = draw_orders(steps, question.pairs, seed=0) if steps > EXACT else []
    chosen = {s for order in [list(range(steps)), *orders] for s in prefixes(order)} if orders else set(ladder.order)
    subsets = [s for s in ladder.order if s in chosen]
    if len(subsets) > question.limit:
        raise UserError(
            f"{len(subsets)} scorings for {steps} steps ({', '.join(map(str, ladder.steps))})",
            allowed=f"{question.limit}",
            todo="raise --limit, or put an evaluation between them",
        )
    return Answer(ladder, orders, subsets)


def explain(study: Study, question: Question, answer: Answer, results: Path, execution: Execution) -> Explained:
    """Score all combinations and write what each step makes of the difference."""
    seed = study.runs[question.run].seeds[0] if question.seed is None else question.seed
    if seed not in study.runs[question.run].seeds:
        raise UserError(f"{question.run} has no seed {seed}", allowed=", ".join(map(str, study.runs[question.run].seeds)))
    folder = results / "explain" / f"{question.a}-{question.b}" / f"{question.run}-s{seed}"
    scorer = Scorer(study, question, seed, results, folder, execution)
    metric = metric_of(answer.ladder, question)
    scores: dict[int, float] = {}
    for number, subset in enumerate(answer.subsets):
        value = scorer.metrics(answer.ladder, subset)[metric]
        if value is None:
            raise UserError(f"{metric} is not defined with {name_of(answer.ladder, subset)}", todo="choose another --metric")
        scores[subset] = value
        log.info("%d/%d  %s: %s %.2f", number + 1, len(answer.subsets), name_of(answer.ladder, subset), metric, value)
    found = summarize(question, seed, answer, metric, scores)
    write_ladder(found, folder)
    log.info("wrote %s", folder)
    return found


class Scorer:
    """Scores combinations of settings, each once: what is there is read."""

    def __init__(self, study: Study, question: Question, seed: int, results: Path, folder: Path, execution: Execution) -> None:
        self.protocol, self.question, self.seed = study.evaluations[question.a].protocol, question, seed
        self.folder, self.execution = folder, execution
        self.backbone = results / question.run / f"s{seed}" / "backbone.safetensors"
        if not self.backbone.is_file():
            raise UserError(f"{self.backbone} does not exist", todo=f"make the run first: snakemake {self.backbone}")
        self.run_hash = study.run_spec(question.run, seed).hash
        if (found := read_run(self.backbone.with_name("run.json")).config_hash) != self.run_hash:
            raise UserError(
                f"{self.backbone} is of an earlier configuration of {question.run} ({found})",
                todo=f"make it again: snakemake {self.backbone}",
            )
        self.sha256 = file_sha256(self.backbone)

    def metrics(self, ladder: Ladder, subset: int) -> dict[str, float | None]:
        """All metrics of one combination."""
        settings = ladder.settings(subset)
        data = fingerprint(settings.data_paths).sha256
        spec = EvaluationSpec(
            run=self.question.run,
            seed=self.seed,
            run_hash=self.run_hash,
            evaluation=self.question.a,
            protocol=self.protocol,
            version=settings.VERSION,
            settings=settings,
            labels=None,
        )
        path = self.folder / "scores" / f"{config_hash([spec.hash, self.sha256, data])}.json"
        if path.is_file():
            return read_model(path, LadderScore, "score of a ladder", "delete it").metrics
        job = Job(
            self.folder / "pictures" / path.stem,
            self.folder / "state" / path.stem,
            self.seed,
            str(distributed.local_device(self.execution.device)),
            usable_workers(self.execution.workers),
            feature_cache(self.execution),
            data=data,
            deterministic=self.execution.deterministic,
        )
        result = evaluation_module(self.protocol).evaluate(settings, self.backbone, job)
        metrics = {name: None if np.isnan(value) else float(value) for name, value in result.metrics.items()}
        write_model(path, LadderScore(config_hash=spec.hash, backbone_sha256=self.sha256, data=data, metrics=metrics))
        return metrics


def summarize(question: Question, seed: int, answer: Answer, metric: str, scores: dict[int, float]) -> Explained:
    """Shares, single steps and interactions of the scores."""
    ladder = answer.ladder
    steps, order = ladder.steps, list(range(len(ladder.steps)))
    unknown: Sequence[float | None] = [None] * len(steps)
    pairs, errors, from_a, from_b = None, unknown, unknown, unknown
    if answer.orders:
        sampled: SampledShares = sampled_shapley(scores.__getitem__, len(steps), answer.orders)
        shares = sampled.shares.tolist()
        errors = [None if np.isnan(error) else error for error in sampled.standard_error.tolist()]  # of one pair of orders
    else:
        table = np.array([scores[s] for s in range(ladder.whole + 1)])
        shares, pairs = shapley(table).tolist(), interactions(table).tolist()
        from_a, from_b = (values.tolist() for values in one_at_a_time(table))
    passed = prefixes(order)
    along = [scores[passed[i + 1]] - scores[passed[i]] for i in order]
    found = [
        StepShare(
            name=str(step),
            start=ladder.values(step)[0],
            end=ladder.values(step)[1],
            reason=step.reason,
            shapley=shares[i],
            standard_error=errors[i],
            sequential=along[i],
            from_a=from_a[i],
            from_b=from_b[i],
        )
        for i, step in enumerate(steps)
    ]
    named = [(name_of(ladder, subset), scores[subset]) for subset in answer.subsets]
    return Explained(
        names=ladder.names,
        run=question.run,
        seed=seed,
        metric=metric,
        unit=ladder.a.METRICS[metric].unit,
        first=scores[0],
        last=scores[ladder.whole],
        steps=found,
        scores=named,
        interactions=pairs,
    )


def text(found: Explained) -> Iterator[str]:
    """The steps as lines."""
    (a, b), difference = found.names, found.last - found.first
    yield f"{found.metric} of {found.run}: {a} {found.first:.2f}, {b} {found.last:.2f} ({difference:+.2f} {found.unit})"
    for s in found.steps:
        parts = [f"{s.shapley:+.2f}", f"in this order {s.sequential:+.2f}"]
        if s.standard_error is not None:
            parts[0] += f" (standard error {s.standard_error:.2f})"
        if s.from_a is not None and s.from_b is not None:
            parts.append(f"alone from {a} {s.from_a:+.2f}, from {b} {s.from_b:+.2f}")
        yield f"  {s.name}: {s.start} -> {s.end}: {', '.join(parts)}"


def metric_of(ladder: Ladder, question: Question) -> str:
    """The metric that is explained."""
    return question.metric or next(iter(ladder.a.METRICS))


def name_of(ladder: Ladder, subset: int) -> str:
    """The steps of a subset, or the name of one of the two evaluations."""
    if subset in (0, ladder.whole):
        return ladder.names[1 if subset else 0]
    return ", ".join(str(step) for i, step in enumerate(ladder.steps) if subset >> i & 1)


def _require(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name not in names:
        raise UserError(f"no such {what}: {name}", allowed=", ".join(names))
