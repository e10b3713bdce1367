"""The ladder between two evaluations, of one protocol or of the two protocols of linear segmentation. Free of torch.

ladder = ladder_between("ade20k_linear", a, "linear_segmentation", b)
ladder.mixture(subset)                      # a probe with the steps of the subset from B, the others from A
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from densewalk.core.hashing import config_hash
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evaluations.linear_ladder.parts import STREAM, TOGETHER, Mixture, require_mixable, values
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.segmentation.recipes import LinearSettings
from densewalk.study.ladder.steps import Ladder, Step, make_ladder


@dataclass(frozen=True)
class MixedLadder(Ladder):
    """Two protocols of linear segmentation, whose parts are turned. Its ends are scored by each protocol's own code, too."""

    @property
    def turned(self) -> bool:
        """Whether A is `linear_segmentation`."""
        return isinstance(self.a, LinearSegmentationSettings)

    @cached_property
    def both(self) -> tuple[LinearSettings, LinearSegmentationSettings]:
        """The toolbox's and the own settings."""
        toolbox, own = (self.b, self.a) if self.turned else (self.a, self.b)
        assert isinstance(toolbox, LinearSettings)
        assert isinstance(own, LinearSegmentationSettings)
        return toolbox, own

    def mixture(self, subset: int) -> Mixture:
        """A probe with the steps of `subset` from B and the others from A."""
        of_b = {name for i, step in enumerate(self.steps) if subset >> i & 1 for name in step.names}
        own = {name for step in self.steps for name in step.names if (name in of_b) != self.turned}
        return Mixture(*self.both, frozenset(own))

    def values(self, step: Step) -> tuple[str, str]:
        """A's and B's values of a step, as texts."""
        (name,) = step.names
        one, other = values(*self.both)[name]
        return (other, one) if self.turned else (one, other)

    def features_of(self, subset: int) -> tuple[tuple[str, str], ...]:
        """The stream of training crops, and the test images."""
        mixture, every = self.mixture(subset), [name for step in self.steps for name in step.names]
        parts = {"training": [p for p in STREAM if p in every], "validation": [p for p in ("scored_images",) if p in every]}
        return tuple((split, config_hash([mixture.is_own(p) for p in names])) for split, names in parts.items())

    def trainings(self, subsets: Sequence[int]) -> int:
        """Heads: probes that are only tested otherwise share one."""
        return len({self.mixture(subset).head for subset in subsets})


def ladder_between(name_a: str, a: EvaluationSettings, name_b: str, b: EvaluationSettings) -> Ladder:
    """The ladder between two evaluations.

    Raises:
        UserError: they cannot be turned into each other; see `make_ladder` and `require_mixable`.
    """
    names = (name_a, name_b)
    if isinstance(a, LinearSettings) and isinstance(b, LinearSegmentationSettings):
        require_mixable(names, a, b)
        both = a, b
    elif isinstance(a, LinearSegmentationSettings) and isinstance(b, LinearSettings):
        require_mixable(names[::-1], b, a)
        both = b, a
    else:
        return make_ladder(name_a, a, name_b, b)
    return MixedLadder(names, a, b, tuple(Step((part,), TOGETHER.get(part, "")) for part in values(*both)))
