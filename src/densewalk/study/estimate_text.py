"""An estimate as text, for `densewalk plan`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from densewalk.core.progress import columns
from densewalk.results.missing import Output, survey
from densewalk.results.plan import Plan
from densewalk.study.config import Study
from densewalk.study.estimate import CHECKPOINTS, Estimate, Job
from densewalk.study.gpus import fits, smallest
from densewalk.study.runs import TrainedRun

LARGEST = 8  # jobs that are listed as what dominates
DATA = "not counted: reading, augmentation, clustering, metrics, optimizers; waiting in a queue"


def text(study: Study, found: Estimate, results: Path, gpu: str) -> str:
    """Jobs by rule, GPU-hours by table, memory, disk, what dominates, what was assumed."""
    hours = sum(job.gpu_hours or 0.0 for job in found.jobs)
    shares = ", ".join(f"{found.utilization[p]:.0%} of {getattr(found.gpu, p):g} TFLOP/s in {p}" for p in ("bfloat16", "float32"))
    parts = [
        f"{study.study}\non {gpu}: {shares} assumed; trainings in {found.precision}, frozen evaluations in float32",
        _rules(study.plan(), found.jobs, results),
        _tables(found.jobs, hours),
        _trainings(found),
        _largest(found.jobs, hours),
        columns(("disk", "GB"), [*((name, _number(size / 1e9)) for name, size in found.disk.items()), _sum(found.disk.values())]),
        "\n".join([DATA, *_notes(study, found)]),
    ]
    return "\n\n".join(part for part in parts if part)


def _sum(sizes: Iterable[float]) -> tuple[str, str]:
    return "all", _number(sum(sizes) / 1e9)


def _rules(plan: Plan, jobs: Sequence[Job], results: Path) -> str:
    """Jobs by rule, and of trainings and evaluations the state of their outputs, which is why they would run."""
    states: dict[str, Counter[str]] = defaultdict(Counter)
    for outputs in survey(plan, results):
        for output in (outputs.backbone, *outputs.results):
            states[_rule(plan, output)][output.state] += 1
    totals: Counter[str] = Counter()
    for job in jobs:
        totals[job.rule] += job.count
    rows = [(rule, str(count), _reasons(states[rule])) for rule, count in totals.items()]
    return columns(("rule", "jobs", "their outputs"), [*rows, ("all", str(totals.total()), "")])


def _rule(plan: Plan, output: Output) -> str:
    if output.evaluation is not None:
        return f"evaluate_{plan.evaluations[output.evaluation].protocol}"
    method = plan.runs[output.run].method
    return "baseline" if method == "none" else f"train_{method}"


def _reasons(states: Counter[str]) -> str:
    """Counts of states, e.g. `2 done, 3 not started`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items(), key=lambda item: (item[0] != "done", item[0])))


def _tables(jobs: Sequence[Job], hours: float) -> str:
    by_table: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_table[job.table].append(job)
    rows = []
    for table, own in by_table.items():
        spent = sum(job.gpu_hours or 0.0 for job in own)
        unknown = sum(job.count for job in own if job.gpu_hours is None)
        count = sum(job.count for job in own)
        rows.append((table, str(count), _number(spent), _share(spent, hours), f"{unknown} not counted" if unknown else ""))
    return columns(("table", "jobs", "GPU-hours", "share", ""), [*rows, ("all", "", _number(hours), "", "")])


def _trainings(found: Estimate) -> str:
    """Trainings, and evaluations that learn, with the memory of one GPU."""
    rows = []
    for job in found.jobs:
        if job.gigabytes is None:
            continue
        each = None if job.gpu_hours is None else job.gpu_hours / job.count
        hours = ("", "") if each is None else (_number(each), _number(each / max(1, job.gpus)))
        least = smallest(job.gigabytes)
        fits_in = "none" if least is None else f"{least:g} GB"
        ways = ", or ".join(f"{name} ({_number(memory)} GB)" for name, memory in job.ways)
        advice = f"too much for {found.gpu.gigabytes:g} GB; fits {ways or 'with a smaller batch only'}"
        todo = "" if fits(job.gigabytes, found.gpu) else advice
        steps = "" if job.steps is None else str(job.steps)
        work = "" if job.flops is None else _number(job.flops / job.count / 1e12)
        rows.append((job.name, str(job.count), str(job.gpus), steps, work, *hours, _number(job.gigabytes), fits_in, todo))
    head = ("learns", "jobs", "GPUs", "steps", "teraflop each", "GPU-hours each", "hours", "GB a GPU", "fits a GPU of", "")
    return columns(head, rows) if rows else ""


def _largest(jobs: Sequence[Job], hours: float) -> str:
    largest = sorted((job for job in jobs if job.gpu_hours), key=lambda job: -(job.gpu_hours or 0.0))[:LARGEST]
    rows = [(job.name, job.rule, _number(job.gpu_hours or 0.0), _share(job.gpu_hours or 0.0, hours)) for job in largest]
    return columns(("dominates", "rule", "GPU-hours", "share"), rows) if rows else ""


def _notes(study: Study, found: Estimate) -> list[str]:
    """What a reader must know."""
    notes = list(found.notes)
    if (budget := study.execution.budget) is not None:
        notes.append(f"execution.budget: {budget.text} for each training that gives no epochs, steps or budget itself")
    if spent := _budgets_in_cpu_seconds(study):
        notes.append(f"trainings with a budget in CPU seconds: {len(spent)}, together {_number(sum(spent) / 3600)} hours of a core")
    if study.execution.device == "cpu":
        notes.append("execution.device is cpu: the jobs ask for no GPU, and the GPU-hours are those of one that does their work")
    notes.append(f"states hold {CHECKPOINTS} checkpoints each and are kept until somebody removes them")
    return notes


def _budgets_in_cpu_seconds(study: Study) -> list[float]:
    """The budget of each training, of each seed, that has one in CPU seconds."""
    trained = [run for run in study.runs.values() if isinstance(run, TrainedRun)]
    budgets = [(run.settings.budget, len(run.seeds)) for run in trained]
    return [budget.amount for budget, seeds in budgets if budget and budget.unit == "cpu_seconds" for _ in range(seeds)]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else ""


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"
