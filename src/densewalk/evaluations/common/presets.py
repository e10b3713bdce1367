"""Published recipes as presets, and how they change when a batch has fewer images.

    the published batch has B images, yours b:   learning rate * b / B,   iterations and warm-up * B / b

so that as many images are seen, each with the same weight (linear scaling, https://arxiv.org/abs/1706.02677, section 2.1). Only
values that the study leaves open are scaled: a value that is given counts as it stands.
"""

from typing import Any, ClassVar

from pydantic import model_validator

from densewalk.evaluations.common.settings import EvaluationSettings


class PresetSettings(EvaluationSettings):
    """Settings with the fields `preset`, `batch_size`, `learning_rate`, `iterations` and `warmup`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    """Name of a published recipe -> the values that differ from the defaults."""

    @model_validator(mode="before")
    @classmethod
    def fill_in_preset(cls, given: Any) -> Any:
        """Add the preset's values, scaled to the batch size, where the study gives none."""
        if not isinstance(given, dict):
            return given
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        name = given.get("preset", defaults["preset"])
        if name not in cls.PRESETS:
            raise ValueError(f"preset '{name}' is unknown; allowed: {', '.join(cls.PRESETS)}")
        recipe = {**defaults, **cls.PRESETS[name]}
        size = given.get("batch_size", recipe["batch_size"])
        factor = size / recipe["batch_size"] if isinstance(size, int) and size > 0 else 1
        scaled = {}
        if factor != 1:
            scaled = {"learning_rate": recipe["learning_rate"] * factor}
            scaled |= {length: max(1, round(recipe[length] / factor)) for length in ("iterations", "warmup") if recipe[length]}
        return {**cls.PRESETS[name], **scaled, **given}
