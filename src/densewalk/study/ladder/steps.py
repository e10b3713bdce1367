"""The settings in which two evaluations differ, and the settings of every stage between them. Free of torch.

    ladder = make_ladder("A", a, "B", b)
    ladder.steps                                # each turned from A's value to B's as one
    ladder.settings(subset)                     # bit i of the subset: step i is B's; 0 is A, 2^K - 1 is B

A setting that follows another one (`compat`) counts by the value that it has, so that the deciding setting itself is no step.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.core.metric import Metric
from densewalk.evaluations.common.protocol_name import WITHOUT_EFFECT
from densewalk.evaluations.common.settings import EvaluationSettings

MOST_SETTINGS = 16  # all of whose combinations are tried for being allowed
# what the images are: scores of other images are not two protocols
DATA = ("root", "dataset", "layout", "images", "masks", "num_classes", "ignore", "year", "split", "sequences")


@dataclass(frozen=True)
class Step:
    """Settings that are turned together. reason: why they cannot be turned alone; empty for a single one."""

    names: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        return " + ".join(self.names)


@dataclass(frozen=True)
class Ladder(ABC):
    """Two evaluations and the steps between them. names: of the evaluations. a, b: their settings."""

    names: tuple[str, str]
    a: EvaluationSettings
    b: EvaluationSettings
    steps: tuple[Step, ...]

    @property
    def whole(self) -> int:
        """The subset of all steps."""
        return 2 ** len(self.steps) - 1

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What can be explained: the metrics of both evaluations."""
        return {name: metric for name, metric in self.a.METRICS.items() if name in self.b.METRICS}

    @cached_property
    def order(self) -> list[int]:
        """All subsets in Gray-code order: one step changes at a time, those that change features least often."""
        return [gray_code(number, len(self.steps)) for number in range(self.whole + 1)]

    @abstractmethod
    def values(self, step: Step) -> tuple[str, str]:
        """A's and B's values of a step, as texts."""

    @abstractmethod
    def features_of(self, subset: int) -> tuple[tuple[str, str], ...]:
        """What tells the feature sets apart that a subset reads."""

    @abstractmethod
    def trainings(self, subsets: Sequence[int]) -> int:
        """Heads that are trained for these subsets."""


@dataclass(frozen=True)
class SettingsLadder(Ladder):
    """Two evaluations of one protocol, whose settings are turned; those that change features first."""

    def settings(self, subset: int) -> EvaluationSettings:
        """The settings with the steps of `subset` from B and the others from A."""
        if subset in (0, self.whole):
            return self.b if subset else self.a
        return _mix(self.a, self.b, [name for i, step in enumerate(self.steps) if subset >> i & 1 for name in step.names])

    def values(self, step: Step) -> tuple[str, str]:
        """A's and B's values of a step, as texts."""
        found = [", ".join(str(getattr(s.resolved(), name)) for name in step.names) for s in (self.a, self.b)]
        return found[0], found[1]

    def features_of(self, subset: int) -> tuple[tuple[str, str], ...]:
        """What tells the feature sets apart that a subset reads; the settings themselves where an evaluation does not say."""
        reads = self.settings(subset).resolved().ladder_reads()
        if not reads:
            return ((str(subset), ""),)
        return tuple(sorted((split, read.key) for split, read in reads.items()))

    def trainings(self, subsets: Sequence[int]) -> int:
        """One for each subset, if the evaluation trains anything."""
        return len(subsets) if self.a.LEARNS else 0


def gray_code(number: int, steps: int) -> int:
    """The subset in place `number` of the reflected Gray code; the last step changes most often, the first one once."""
    code = number ^ number >> 1
    return sum((code >> bit & 1) << (steps - 1 - bit) for bit in range(steps))


def make_ladder(name_a: str, a: EvaluationSettings, name_b: str, b: EvaluationSettings) -> SettingsLadder:
    """The ladder between two evaluations of one protocol.

    Raises:
        UserError: they are of other protocols or other data, they do not differ, or in too many settings.
    """
    names = (name_a, name_b)
    if type(a) is not type(b):
        found = f"{name_a} and {name_b} have different kinds of settings: {a.TITLE} and {b.TITLE}"
        allowed = "two evaluations of one protocol, or linear_segmentation and a linear head of the toolbox"
        raise UserError(found, allowed=allowed, todo="choose two whose settings can be turned one by one")
    for field in DATA:
        one, other = (getattr(s, field, None) for s in (a, b))
        if one != other:
            raise UserError(f"{name_a} and {name_b} are of other data: {field} {one!r} and {other!r}", allowed="the same data")
    different = list(differences(a, b))
    if not different:
        raise UserError(f"{name_a} and {name_b} have the same settings", allowed="evaluations whose settings differ")
    if len(different) > MOST_SETTINGS:
        found = f"{name_a} and {name_b} differ in {len(different)} settings ({', '.join(different)})"
        raise UserError(found, allowed=f"at most {MOST_SETTINGS}", todo="put an evaluation between them")
    steps = join_inseparable(a, b, [Step((name,)) for name in different])
    plain = SettingsLadder(names, a, b, tuple(steps))
    ordered = sorted(range(len(steps)), key=lambda i: plain.features_of(1 << i) == plain.features_of(0))  # stable
    return SettingsLadder(names, a, b, tuple(steps[i] for i in ordered))


def differences(a: EvaluationSettings, b: EvaluationSettings) -> Iterator[str]:
    """The settings that change numbers and differ, with every switch at the value that it has."""
    one, other = a.resolved(), b.resolved()
    deciding = {facts.by for facts in a.switches().values()}
    for name in type(a).model_fields:
        if name not in WITHOUT_EFFECT and name not in deciding and getattr(one, name) != getattr(other, name):
            yield name


def join_inseparable(a: EvaluationSettings, b: EvaluationSettings, steps: list[Step]) -> list[Step]:
    """Join steps until every combination of them is allowed by the settings' own rules.

    while a combination is refused:
        take the smallest refused one, and the smallest allowed one that holds it: its steps become one
    """
    while (refused := _first_refused(a, b, steps)) is not None:
        subset, reason = refused
        holding = (s for s in sorted(range(2 ** len(steps)), key=lambda s: (s.bit_count(), s)) if s & subset == subset)
        joined = next(s for s in holding if s == 2 ** len(steps) - 1 or _refusal(a, b, steps, s) is None)
        members = [step for i, step in enumerate(steps) if joined >> i & 1]
        names = tuple(name for step in members for name in step.names)
        rest = [step for i, step in enumerate(steps) if not joined >> i & 1]
        steps = sorted([Step(names, reason), *rest], key=lambda step: list(type(a).model_fields).index(step.names[0]))
    return steps


def _first_refused(a: EvaluationSettings, b: EvaluationSettings, steps: list[Step]) -> tuple[int, str] | None:
    """The smallest combination that is refused, and why."""
    for subset in sorted(range(1, 2 ** len(steps) - 1), key=lambda s: (s.bit_count(), s)):
        if (reason := _refusal(a, b, steps, subset)) is not None:
            return subset, reason
    return None


def _refusal(a: EvaluationSettings, b: EvaluationSettings, steps: list[Step], subset: int) -> str | None:
    """Why a combination is refused; None where it is allowed."""
    if subset in (0, 2 ** len(steps) - 1):
        return None
    try:
        _mix(a, b, [name for i, step in enumerate(steps) if subset >> i & 1 for name in step.names])
    except ValidationError as error:
        return "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
    return None


def _mix(a: EvaluationSettings, b: EvaluationSettings, names: list[str]) -> EvaluationSettings:
    """A's settings with some of B's; every switch is written down, so that what decides it no longer matters."""
    one, other = a.resolved(), b.resolved()
    values: dict[str, Any] = {name: getattr(one, name) for name in type(a).model_fields}
    return type(a).model_validate(values | {name: getattr(other, name) for name in names})
