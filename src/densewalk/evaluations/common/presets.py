"""Published recipes as presets, and what becomes of them when a batch has fewer images.

    the published batch has B images, yours b:   learning rate * b / B,   iterations and warm-up * B / b

so that as many images are seen, each with the same weight (linear scaling, https://arxiv.org/abs/1706.02677, section 2.1). Only
what the study leaves open is scaled: a value that is given counts as it stands.
"""

from typing import Any

from pydantic import BaseModel

GROWS, SHRINKS = ("learning_rate",), ("iterations", "warmup")


def completed(model: type[BaseModel], presets: dict[str, dict[str, Any]], given: Any) -> Any:
    """`given`, what a study says, with the preset's other values, scaled to the study's batch size.

    Raises:
        ValueError: no preset of that name.
    """
    if not isinstance(given, dict):
        return given
    defaults = {name: field.default for name, field in model.model_fields.items()}
    name = given.get("preset", defaults["preset"])
    if name not in presets:
        raise ValueError(f"preset '{name}' is unknown; allowed: {', '.join(presets)}")
    recipe = {**defaults, **presets[name]}
    size = given.get("batch_size", recipe["batch_size"])
    scaled = scale(recipe, size / recipe["batch_size"]) if isinstance(size, int) and size > 0 else {}
    return {**presets[name], **scaled, **given}


def scale(recipe: dict[str, Any], factor: float) -> dict[str, Any]:
    """What a recipe says of learning rate and lengths, for a batch `factor` times as large; empty if it is as large."""
    if factor == 1:
        return {}
    grown = {name: recipe[name] * factor for name in GROWS}
    return grown | {name: max(1, round(recipe[name] / factor)) for name in SHRINKS if recipe[name]}
