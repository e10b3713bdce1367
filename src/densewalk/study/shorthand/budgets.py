"""One budget for all trainings of a study: `execution: {budget: {cpu_seconds: 300}}`.

A budget is a length, so it enters the hashes of the runs that it is for. Counted operations are turned into steps when the study is read:
`teraflop: 500` and the `steps` that it gives are one run. A measured budget stays what it is, because how many steps it pays for is not
known before a machine has tried; the number is in the run's state and in every record.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.models.architecture import shape_of
from densewalk.study.registry import methods
from densewalk.study.runs import TrainedRun
from densewalk.training.budget.settings import Budget
from densewalk.training.settings import LENGTHS, TrainingSettings

if TYPE_CHECKING:
    from densewalk.study.config import Study


def spread_budget(values: dict[str, Any]) -> dict[str, Any]:
    """Give the study's budget to each run that trains and has no length of its own, in a study that is not yet checked.

    A length that a preset or a default says is not the run's own. A budget of another form than its model allows stays where it is.
    """
    execution = values.get("execution")
    budget = execution.get("budget") if isinstance(execution, dict) else None
    try:
        Budget.model_validate(budget)
    except ValidationError:
        return values
    assert isinstance(budget, dict)
    return {**values, "runs": {name: _with_budget(run, budget) for name, run in values["runs"].items()}}


def _with_budget(run: Any, budget: Mapping[str, Any]) -> Any:
    settings = run.get("settings") if isinstance(run, dict) else None
    if not isinstance(settings, dict) or not _trains(run.get("method")) or any(settings.get(name) is not None for name in LENGTHS):
        return run
    own = {name: value for name, value in settings.items() if name not in LENGTHS}  # a length that is null says nothing
    return {**run, "settings": {**own, "budget": budget}}


def _trains(method: Any) -> bool:
    return isinstance(method, str) and issubclass(methods().get(method, object), TrainingSettings)


def count_steps(study: "Study") -> None:
    """Turn each budget in teraflop into the number of steps that it pays for, in a study whose chains are checked.

    Raises:
        ValueError: it pays for no step, or the work of the architecture is not known.
    """
    for name, run in study.runs.items():
        if not isinstance(run, TrainedRun) or run.settings.budget is None:
            continue
        budget, where = run.settings.budget, f"runs.{name}"
        if study.execution.device == "cpu" and budget.unit == "gpu_hours":
            raise ValueError(f"{where}: a budget in GPU-hours, and execution.device is cpu; allowed: cpu_seconds, teraflop")
        if study.execution.device == "cuda" and budget.unit == "cpu_seconds":
            raise ValueError(f"{where}: a budget in CPU seconds, and execution.device is cuda; allowed: gpu_hours, teraflop")
        if budget.unit == "teraflop":
            try:
                steps = budget.steps(teraflop_of_step(run.settings, study.arch_of(name), where), where)
            except UserError as error:
                raise ValueError(str(error)) from error
            study.runs[name] = run.model_copy(update={"settings": run.settings.of_steps(steps)})


def teraflop_of_step(settings: TrainingSettings, arch: str, where: str) -> float:
    """The counted work of one optimizer step; UserError for an architecture whose name does not tell its shape."""
    if (shape := shape_of(arch)) is None:
        allowed = "gpu_hours, cpu_seconds, or a number of steps"
        raise UserError(f"{where}: how many operations {arch} needs is not in its name, so none are counted", allowed=allowed)
    return settings.step_work(shape).flops / 1e12
