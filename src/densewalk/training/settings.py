"""Settings that all methods share, those that train and those that only change a backbone."""

import json
import math
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.errors import UserError
from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, Epochs, Settings, Steps, is_null
from densewalk.core.text.complaints import did_you_mean
from densewalk.data.amounts import Amount
from densewalk.models.architecture import Architecture
from densewalk.models.catalog import Labels
from densewalk.models.work import LEARN, Work, kept, parameters, vit
from densewalk.training.budget.settings import Budget

LENGTHS = ("epochs", "steps", "budget")
"""Settings that say how long a training is; one of them does."""


def epochs_in(label: str) -> float | None:
    """The length that a label of pretraining data names, e.g. 300 of `WT_Venice (300 ep)`; None if it names none."""
    found = re.search(r"\((\d+) ep(?:ochs)?\)", label)
    return float(found[1]) if found else None


class MethodSettings(Settings):
    """What makes a run's backbone from its initial one: everything here enters the run's hash. How it is run is `Execution`.

    VERSION enters the hash from 2 on: raising it makes the method's runs, and what is built on them, again.
    """

    VERSION: ClassVar[int] = 1
    """Raise it when a change of the method's code changes what is made, in whatever setting; say why beside it."""
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    """What a job asks a scheduler for."""
    PICTURES: ClassVar[dict[str, str]] = {}
    """Captions of what `Method.pictures` draws, by file name without its end."""
    SAME_NUMBERS: ClassVar[tuple[str, ...]] = ()
    """Settings by which a run costs more or fails, but never learns something else."""
    GIVES: ClassVar[frozenset[str] | None] = None
    """What the exported network can give (models/families/abilities.py), if it is less than its architecture can; no method trains it."""
    ADDS: ClassVar[frozenset[str]] = frozenset()
    """What the exported network can give besides; a method that starts from it takes it away."""

    @property
    def deviations(self) -> str:
        """`compat` and changed switches: what the tables' column `compat` says."""
        return ""

    @classmethod
    def published_settings(cls, labels: Labels) -> dict[str, tuple[Any, ...]] | None:
        """What is known of the settings of a published run: name -> the value it had, or those of its several recipes.

        Args:
            labels: as published.csv names it.

        Returns:
            None if it is none of this method's.
        """
        return None

    def files(self) -> list[str]:
        """Files beside the data that the settings name and the training reads: their contents decide what is learned, not their names."""
        return []

    def all_settings(self, *without: str) -> dict[str, tuple[Any, ...]]:
        """Every resolved setting, in the form of `published_settings`, but those that change no number and those `without`."""
        resolved = self.resolved()
        free = {"preset", *self.SAME_NUMBERS, *without}
        return {name: (getattr(resolved, name),) for name in type(self).model_fields if name not in free}


class TrainingSettings(MethodSettings):
    """What is learned."""

    SAMPLES: ClassVar[Literal["images", "clips"]] = "images"
    """What a batch is made of, and what `samples_seen` counts."""

    CUT_FROM: ClassVar[Literal["images", "frames", "timed frames"]] = "images"
    """What a sample is cut from: images, of which frames are some; frames that follow each other; or such frames at known times."""
    TEACHERS: ClassVar[bool] = False
    """It learns from other networks, which the run names in `teachers`."""

    compat: Literal["paper", "released"] = "paper"
    """`paper`: the method as published. `released`: the released code's known deviations, to the digit."""
    batch_size: int = Field(default=64, ge=1)
    """Samples of one optimizer step over all processes together."""
    epochs: Epochs | None = None
    """Passes over the data. Exactly one of `epochs`, `steps` and `budget`."""
    steps: Steps | None = None
    """Optimizer steps, at most ten million. Exactly one of `epochs`, `steps` and `budget`."""
    budget: Budget | None = Field(default=None, exclude_if=is_null)
    """As many steps as this pays for. Exactly one of `epochs`, `steps` and `budget`; `execution.budget` gives one to all runs that
    have no length of their own."""

    @model_validator(mode="before")
    @classmethod
    def length_replaces_default_epochs(cls, values: Any) -> Any:
        """A study that says `steps` or a budget need not take back the default of `epochs`."""
        if isinstance(values, dict) and "epochs" not in values and any(values.get(name) is not None for name in ("steps", "budget")):
            return {**values, "epochs": None}
        return values

    @model_validator(mode="after")
    def one_length(self) -> Self:
        """The length is given in one way."""
        amounts = {"epochs": self.epochs, "steps": self.steps, "budget": self.budget and self.budget.text}
        given = [f"{name} {amount if name == 'budget' else f'{amount:g}'}" for name, amount in amounts.items() if amount is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of {', '.join(LENGTHS)} (found {', '.join(given) or 'none'})")
        return self

    def ceilings(self) -> dict[str, Ceiling]:
        """Logged quantity -> the largest value that it can have, where that is known."""
        return {}

    @property
    def deviations(self) -> str:
        """`compat`, and each switch that the study sets otherwise: what the tables' column `compat` says."""
        following = [(name, facts) for name, facts in sorted(self.switches().items()) if facts.by == "compat"]
        changed = [name for name, facts in following if getattr(self, name) not in (None, facts.values[self.compat])]
        return " ".join([self.compat, *(f"{name}={json.dumps(getattr(self, name))}" for name in changed)])

    def obstacle(self) -> str | None:
        """Why a training with these settings cannot begin, as far as they alone tell; None where it can."""
        return None

    def sides(self) -> dict[str, int]:
        """Setting -> side in pixels of images that the network is given: whole patches fill it."""
        return {}

    def obstacle_to_network(self, arch: Architecture) -> str | None:
        """Why a network of this shape cannot be trained with these settings, as far as they tell; None where it can."""
        if (blocks := getattr(self, "trainable_blocks", None) or 0) > arch.depth:
            return f"trainable_blocks {blocks}: {arch.name} has {arch.depth} blocks"
        for name, side in self.sides().items():
            if side % arch.patch:
                near = max(1, round(side / arch.patch)) * arch.patch
                return f"{name} {side} is not a multiple of the patch size {arch.patch}; allowed: e.g. {near}"
        return None

    def require_network(self, arch: Architecture) -> None:
        """Raise UserError for a network that `obstacle_to_network` tells of."""
        if obstacle := self.obstacle_to_network(arch):
            raise UserError(obstacle)

    def across_samples(self) -> str | None:
        """What in a step looks across the samples of a process's batch, in a few words; None where nothing does.

        None promises that the gradient of a batch is the mean of its parts' gradients, so that they may be passed one by one.
        """
        return f"{type(self).__name__} does not say that its loss is a mean over independent samples"

    def obstacle_to_parts(self, parts: int, processes: int = 1) -> str | None:
        """Why each of the processes cannot pass its share of the batch in this many equal parts; None where it can."""
        if parts == 1:
            return None
        if reason := self.across_samples():
            return f"{reason}, and would learn something else from {parts} parts"
        if self.batch_size % (parts * processes):
            shares = f" shared by {processes} processes" if processes > 1 else ""
            return f"batch_size {self.batch_size}{shares} does not split into {parts} equal parts"
        return None

    def total_steps(self, samples: int) -> tuple[int, int]:
        """Optimizer steps in all and per epoch, for a data set of `samples` samples (incomplete batches are dropped).

        Of a budget, `of_steps` gives settings with the number of steps first.

        Raises:
            UserError: one batch is larger than the data set, or the epochs have too many steps.
        """
        per_epoch = samples // self.batch_size
        if per_epoch == 0:
            raise UserError(f"batch_size {self.batch_size} is larger than the data set ({samples} samples)", todo="lower batch_size")
        total = self.steps if self.steps is not None else max(1, round(self.epochs * per_epoch))  # type: ignore[operator]
        if total > MOST_STEPS:
            found = f"{self.epochs:g} epochs of {per_epoch} steps are {total:,} steps"
            raise UserError(found, allowed=f"{MOST_STEPS:,}", todo="lower epochs")
        return total, per_epoch

    def of_steps(self, steps: int) -> Self:
        """The same settings with this number of steps for a length."""
        return self.model_copy(update={"steps": steps, "epochs": None, "budget": None})

    def warmup_steps(self, per_epoch: int) -> float:
        """Steps until the learning rate is at its peak: of the setting `warmup_epochs`, if the method has one."""
        return float(getattr(self, "warmup_epochs", 0)) * per_epoch

    def warmup_obstacle(self, total: int, per_epoch: int) -> str | None:
        """Why the warm-up does not fit into a training of `total` steps, and the longest one that does; None where it fits."""
        if (warmup := self.warmup_steps(per_epoch)) <= total:
            return None
        longest = math.floor(1000 * total / per_epoch) / 1000
        found = f"warmup_epochs {getattr(self, 'warmup_epochs', 0):g} are {warmup:g} steps, the training has {total}"
        return f"{found}; allowed: at most {longest:g}; to do: lower warmup_epochs"

    # -- for `densewalk plan`: estimates, which a method gives that wants better ones ---------------------------------------------

    def samples(self, amount: Amount) -> int:
        """Samples of an epoch from a source: every frame or image."""
        return amount.frames

    def step_work(self, arch: Architecture) -> Work:
        """The work of one optimizer step, over all processes: a student that learns from each sample at 224 px, and a teacher."""
        images = self.batch_size
        flops = images * vit(arch, 224) * (LEARN + 1)
        return Work(flops, kept=images * kept(arch, 224), learnt=parameters(arch), fixed=parameters(arch))


class PresetSettings(TrainingSettings):
    """Training settings of which some combinations have a name."""

    # name -> what it sets
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    preset: str | None = None
    """A named configuration; keys given beside it win."""

    @model_validator(mode="before")
    @classmethod
    def preset_first(cls, values: Any) -> Any:
        """Keys given in the study win over the preset's."""
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        if (name := values["preset"]) not in cls.PRESETS:
            raise ValueError(f"preset '{name}' is unknown{did_you_mean(str(name), cls.PRESETS)}; allowed: {', '.join(cls.PRESETS)}")
        preset = cls.preset_beside(values)
        if given := [name for name in LENGTHS if values.get(name) is not None]:
            preset |= {name: None for name in LENGTHS if name not in given}
        return {**preset, **values}

    @classmethod
    def preset_beside(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What the preset sets beside the given keys."""
        return dict(cls.PRESETS[values["preset"]])
