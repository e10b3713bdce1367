"""What a step is said to spend, and how many steps a budget pays for."""

import pytest
import torch
from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.training.budget import measure
from densewalk.training.budget.settings import Budget
from densewalk.training.execution import Execution
from tests.fixtures.toy import Noise, Toy, ToySettings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("budget", "step", "steps"),
    [({"teraflop": 10.0}, 3.0, 3), ({"cpu_seconds": 60.0}, 0.25, 240), ({"gpu_hours": 0.5}, 2.0, 900), ({"cpu_seconds": 1.0}, 1.0, 1)],
)
def test_a_budget_pays_for_whole_steps(budget, step, steps):
    assert Budget(**budget).steps(step, "run") == steps


@pytest.mark.parametrize(
    ("budget", "step", "message"),
    [
        ({"teraflop": 1.0}, 2.0, "runs.a: the budget of 1 teraflop is less than one step, which takes 2 teraflop; to do: raise it"),
        ({"gpu_hours": 0.001}, 4.0, "the budget of 0.001 GPU-hours is less than one step, which takes 4 seconds"),
        ({"cpu_seconds": 1e9}, 1.0, r"the budget of 1e\+09 CPU seconds gives 1,000,000,000 steps; allowed: 10,000,000"),
    ],
)
def test_a_budget_of_no_step_or_too_many_is_refused(budget, step, message):
    with pytest.raises(UserError, match=message):
        Budget(**budget).steps(step, "runs.a")


@pytest.mark.parametrize("given", [{}, {"cpu_seconds": 1.0, "teraflop": 1.0}, {"cpu_seconds": 0}, {"hours": 1}])
def test_a_budget_has_one_positive_unit(given):
    with pytest.raises(ValidationError):
        Budget(**given)


@pytest.mark.parametrize("other", [{"epochs": 1}, {"steps": 1}])
def test_a_length_is_given_once(other):
    assert (ToySettings(budget={"teraflop": 1.0}).of_steps(7).steps, ToySettings(steps=3).budget) == (7, None)
    with pytest.raises(ValidationError, match="exactly one of epochs, steps, budget"):
        ToySettings(budget={"teraflop": 1.0}, **other)


@pytest.mark.parametrize(("budget", "timed"), [(1.0, 4), (150.0, 6), (1e6, 8)])
def test_steps_are_timed_after_the_first_for_a_share_of_the_budget(monkeypatch, budget, timed):
    """A clock that a step moves by half a second, and the untimed first step by a minute; a fiftieth of 150 s are 6 steps."""
    method = Toy(100)
    monkeypatch.setattr(measure, "MOST", 8)
    monkeypatch.setattr(measure, "clock", lambda device: 60 + len(method.seen) / 4 / 2)
    spent = measure.step_seconds(method, Noise(), batch_size=4, seed=0, execution=Execution(workers=2), device=CPU, parts=1, budget=budget)
    assert spent == pytest.approx(0.5)
    assert len(method.seen) == 4 * (1 + timed)


def test_a_step_on_a_cpu_spends_the_time_of_loading_too(monkeypatch):
    """The clock moves while a sample is read: 4 of them a step; those of two processes are added up."""
    seconds = [0.0]

    class Slow(Noise):
        def __getitem__(self, item):
            seconds[0] += 0.25
            return super().__getitem__(item)

    monkeypatch.setattr(measure, "clock", lambda device: seconds[0])
    given = {"batch_size": 4, "seed": 0, "execution": Execution(workers=2), "device": CPU, "parts": 1, "budget": 1.0}
    assert measure.step_seconds(Toy(100), Slow(), **given) == pytest.approx(1.0)
    monkeypatch.setattr(measure.distributed, "gathered", lambda mine: torch.stack([mine, mine + 0.5]))
    assert measure.step_seconds(Toy(100), Slow(), **given) == pytest.approx(2.5)
