"""What a study costs before anything is queued: jobs, GPU-hours, memory and disk, from the settings alone. Free of torch.

Counted are products of matrices on the GPU (models/work.py; each method's and evaluation's settings say theirs). Not counted are
reading, augmentation, clustering, metrics and optimizers, nor the time in a queue.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.receipts import VideoReceipt
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture, shape_of
from densewalk.models.work import Work, parameters
from densewalk.study.amounts import Amounts, Assumed
from densewalk.study.config import Study
from densewalk.study.gpus import Gpu, Share, fits, gigabytes, ways_to_fit
from densewalk.study.runs import TrainedRun
from densewalk.training.settings import TrainingSettings

UTILIZATION = {"bfloat16": 0.3, "float32": 0.6}  # of a GPU's peak, assumed
CHECKPOINTS = 2  # that a training keeps
BITS_OF_PIXEL = 0.2  # of a training copy with its short groups of pictures


@dataclass(frozen=True)
class Job:
    """Jobs of one kind: run and its seeds, or evaluation of a run. gpu_hours: of all seeds; gigabytes: on one GPU, None where unknown.

    ways: if that is more than the GPU has, single changes that help, and the gigabytes that are then needed.
    """

    rule: str
    table: str
    name: str
    count: int
    gpus: int
    steps: int | None
    flops: float | None
    gpu_hours: float | None
    gigabytes: float | None
    ways: tuple[tuple[str, float], ...] = ()


@dataclass
class Estimate:
    """A study's cost, and what was assumed on the way."""

    gpu: Gpu
    utilization: dict[str, float]
    precision: str
    jobs: list[Job] = field(default_factory=list)
    disk: dict[str, float] = field(default_factory=dict)  # what -> bytes
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Remember something that a reader must know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def gpu_hours(self, flops: float, precision: str) -> float:
        """Hours of one GPU."""
        return flops / (getattr(self.gpu, precision) * 1e12 * self.utilization[precision]) / 3600


def estimate(study: Study, gpu: Gpu, results: Path, assumed: Assumed) -> Estimate:
    """The cost of a whole study, whatever of it is done."""
    utilization = dict(UTILIZATION) if assumed.utilization is None else dict.fromkeys(UTILIZATION, assumed.utilization)
    found = Estimate(gpu, utilization, study.execution.precision)
    amounts = Amounts(study, results, assumed, found.note)
    found.jobs += _other_jobs(study)
    for name in study.runs:
        found.jobs += _runs(study, name, amounts, found)
    for name in study.evaluations:
        found.jobs += _evaluations(study, name, found)
    _disk(study, amounts, found)
    return found


# -- jobs --------------------------------------------------------------------------------------------------------------


def architecture(study: Study, run: str, found: Estimate) -> Architecture | None:
    """A run's architecture; None where its name does not tell."""
    name = study.arch_of(run)
    known = shape_of(name)
    if known is None:
        found.note(f"{name}: its shape is not in its name; its runs and their evaluations are not counted")
    return known


def _runs(study: Study, name: str, amounts: Amounts, found: Estimate) -> Iterator[Job]:
    run = study.runs[name]
    arch = architecture(study, name, found)
    if not isinstance(run, TrainedRun):
        yield Job("baseline", "trainings", name, len(run.seeds), 0, None, 0.0, 0.0, None)
        return
    settings, gpus = run.settings, study.execution.gpus_of(run.settings.RESOURCES)
    rule = f"train_{run.method}"
    samples = sum(settings.samples(amount) for source in run.data for amount in amounts.of(source))
    steps = _steps(name, settings, samples, found)
    if arch is None:
        hours = settings.budget.amount * len(run.seeds) if settings.budget and settings.budget.unit == "gpu_hours" else None
        yield Job(rule, "trainings", name, len(run.seeds), gpus, steps, None, hours, None)
        return
    step = settings.step_work(arch)
    flops = None if steps is None else steps * step.flops * len(run.seeds)
    hours = None if flops is None else found.gpu_hours(flops, found.precision)
    if settings.budget is not None and settings.budget.unit == "gpu_hours":
        hours = settings.budget.amount * len(run.seeds)
    how = study.execution
    share = Share(max(1, gpus), how.parts_of(name), how.gradient_checkpointing, None if how.compile else how.shard)
    memory = _memory(step, found.precision, share, arch, settings, found.gpu)
    yield Job(rule, "trainings", name, len(run.seeds), gpus, steps, flops, hours, *memory)


def _steps(name: str, settings: TrainingSettings, samples: int, found: Estimate) -> int | None:
    """The steps of a training; None where they are measured when it begins."""
    if settings.budget is not None:
        found.note(f"run {name}: {settings.budget.text}; how many steps they pay for is measured when it begins")
        return None
    try:
        steps, per_epoch = settings.total_steps(samples)
    except UserError as error:
        found.note(f"run {name}: {error}")
        return settings.steps or 0
    if obstacle := settings.warmup_obstacle(steps, per_epoch):
        found.note(f"run {name}: {obstacle}; it would be refused")
    return steps


def _memory(
    work: Work, precision: str, share: Share, arch: Architecture, settings: TrainingSettings | EvaluationSettings, gpu: Gpu
) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Gigabytes on one GPU, and if it has not so many, what helps."""

    def memory(other: Share) -> float:
        return gigabytes(work, precision, other, arch)

    def obstacle(parts: int, processes: int) -> str | None:
        if getattr(settings, "batch_size", 1) % processes:
            return "unequal shares"
        return settings.obstacle_to_parts(parts, processes)

    needed = memory(share)
    return needed, () if fits(needed, gpu) else tuple(ways_to_fit(memory, share, gpu, obstacle))


def _evaluations(study: Study, name: str, found: Estimate) -> Iterator[Job]:
    evaluation = study.evaluations[name]
    settings, rule = evaluation.settings, f"evaluate_{evaluation.protocol}"
    gpus = study.execution.gpus_of(settings.RESOURCES)
    for run in study.runs:
        count = sum(evaluation.covers(run, seed) for seed in study.runs[run].seeds)
        if not count:
            continue
        arch = architecture(study, run, found)
        work = None if arch is None else settings.work(arch)
        if arch is None or work is None:
            if arch is not None:
                found.note(f"evaluation {name}: its work is not known, it is not counted")
            yield Job(rule, settings.TABLE, f"{name} of {run}", count, gpus, None, None, None, None)
            continue
        precision = "bfloat16" if work.bfloat16 else "float32"
        hours = found.gpu_hours(work.flops, precision) * count
        share = Share(
            max(1, gpus) if settings.PROCESSES else 1,
            study.execution.accumulate_evaluations.get(name, 1),
            getattr(settings, "gradient_checkpointing", False),
        )
        memory = _memory(work, precision, share, arch, settings, found.gpu) if work.learnt else (None, ())
        yield Job(rule, settings.TABLE, f"{name} of {run}", count, gpus, None, work.flops * count, hours, *memory)


def _other_jobs(study: Study) -> Iterator[Job]:
    """Jobs whose work is not on a GPU, or is nothing."""
    tables = len(study.task_tables) + 3  # gain, all, cost
    counts = {
        "generate": int(study.synthetic is not None),
        "prepare_video": len(study.videos),
        "check_images": len(study.images),
        "curate": len(study.curations),
        "features": len(study.runs) if study.picture_sources() else 0,
        "table": tables,
        "report": 1,
        "all": 1,
    }
    return (Job(rule, "data, pictures and tables", rule, count, 0, None, 0.0, 0.0, None) for rule, count in counts.items() if count)


# -- disk --------------------------------------------------------------------------------------------------------------


def _disk(study: Study, amounts: Amounts, found: Estimate) -> None:
    copies = 0.0
    for name, video in study.videos.items():
        receipt = amounts.receipt(name)
        if isinstance(receipt, VideoReceipt):
            copies += receipt.bytes
        else:
            copies += sum(a.frames for a in amounts.of(name)) * video.short_side**2 * 16 / 9 * BITS_OF_PIXEL / 8
    backbones = states = 0.0
    for name, run in study.runs.items():
        if (arch := architecture(study, name, found)) is None:
            continue
        backbones += 4 * parameters(arch) * len(run.seeds)
        if isinstance(run, TrainedRun):
            work = run.settings.step_work(arch)
            states += CHECKPOINTS * (12 * work.learnt + 4 * work.fixed) * len(run.seeds)
        for evaluation in study.evaluations.values():
            if count := sum(evaluation.covers(name, seed) for seed in run.seeds):
                head = evaluation.settings.work(arch)
                states += CHECKPOINTS * 12 * head.learnt * count if head else 0.0
    found.disk = {
        "training copies of videos": copies,
        "states of trainings and heads (results/state)": states,
        "backbones": backbones,
        "shared features (execution.cache_gib)": study.execution.cache_gib * 2**30,
    }
