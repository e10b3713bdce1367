"""Published recipes as presets, and how they change when a batch has fewer images.

    the published batch has B images, yours b:   learning rate * b / B,   iterations and warm-up * B / b

so that as many images are seen, each with the same weight (linear scaling, https://arxiv.org/abs/1706.02677, section 2.1). Only
values that the study leaves open are scaled: a value that is given counts as it stands.
"""

from typing import Any, ClassVar

from pydantic import model_validator

from densewalk.core.text.complaints import did_you_mean
from densewalk.evaluations.common.settings import EvaluationSettings


class NamedPresets(EvaluationSettings):
    """Settings with the field `preset`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    """Name of a published recipe -> the values that differ from the defaults."""

    @model_validator(mode="before")
    @classmethod
    def fill_in_preset(cls, given: Any) -> Any:
        """Add the preset's values where the study gives none."""
        if not isinstance(given, dict):
            return given
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        name = given.get("preset", defaults["preset"])
        if name not in cls.PRESETS:
            raise ValueError(f"preset '{name}' is unknown{did_you_mean(str(name), cls.PRESETS)}; allowed: {', '.join(cls.PRESETS)}")
        return {**cls.PRESETS[name], **cls.scaled({**defaults, **cls.PRESETS[name]}, given), **given}

    @classmethod
    def scaled(cls, recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Values of the recipe that change with what is given; none by default."""
        return {}


class PresetSettings(NamedPresets):
    """Settings with the fields `preset`, `batch_size`, `learning_rate`, `iterations` and `warmup`."""

    PROCESSES: ClassVar[bool] = True

    @property
    def normalizes_batches(self) -> bool:
        """True if batch normalization looks across the images of a batch."""
        raise NotImplementedError(f"{type(self).__name__} does not say whether it has batch normalization")

    def obstacle_to_parts(self, parts: int, processes: int = 1) -> str | None:
        """Why each of the processes cannot pass its share of the batch in this many equal parts; None where it can."""
        size: int = getattr(self, "batch_size")  # noqa: B009  a field of every subclass
        if size % processes:
            return f"batch_size {size} cannot be shared evenly by {processes} processes"
        if size // processes % parts:
            shares = f" shared by {processes} processes" if processes > 1 else ""
            return f"batch_size {size}{shares} does not split into {parts} equal parts"
        if parts > 1 and self.normalizes_batches:
            return (
                "batch normalization looks across the batch, and would learn something else from parts: use more GPUs, whose processes "
                "normalize together, gradient_checkpointing, or a smaller batch_size, which is another protocol"
            )
        return None

    @classmethod
    def scaled(cls, recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Learning rate, iterations and warm-up of another batch size."""
        size = given.get("batch_size", recipe["batch_size"])
        factor = size / recipe["batch_size"] if isinstance(size, int) and size > 0 else 1
        if factor == 1:
            return {}
        lengths = {length: max(1, round(recipe[length] / factor)) for length in ("iterations", "warmup") if recipe[length]}
        return {"learning_rate": recipe["learning_rate"] * factor, **lengths}
