"""What an evaluation says to `runner`; free of the toolboxes, which take seconds to import."""

from dataclasses import dataclass
from typing import Any, Literal

Config = dict[str, Any]
PREFIX = "score"  # mmengine wants the names of a metric's values to have one; `run` takes it off


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, in the configuration dictionaries of `scope`'s toolbox.

    optimizer: an optim_wrapper's `optimizer`, and `constructor` and `paramwise_cfg` if wanted. schedules: parameter schedulers
    that count iterations. metric: an evaluator's configuration; `run` returns what it computes. group_by_aspect: batches of
    portrait or of landscape images only. test_model: what is put around the trained model, its `segmentor`, for the test.
    """

    scope: Literal["mmseg", "mmdet"]
    model: Config
    optimizer: Config
    schedules: list[Config]
    training: Config
    test: Config
    metric: Config
    iterations: int
    batch_size: int
    group_by_aspect: bool = False
    test_model: Config | None = None


def default_levels(depth: int) -> list[int]:
    """Blocks after a third, half, two thirds and all of the depth: 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, as published."""
    return [max(0, round(depth * part) - 1) for part in (1 / 3, 1 / 2, 2 / 3, 1)]


def scales(patch: int) -> tuple[float, ...]:
    """Factors from the ViT's map to the first four levels, whose strides come near 4, 8, 16, 32: patch 14 gives 3.5, 7, 14, 28."""
    return (2.0, 1.0, 0.5, 0.25) if patch <= 8 else (4.0, 2.0, 1.0, 0.5)


def strides(patch: int) -> list[float]:
    """Pixels per position of the five levels, exact: the fifth is the fourth, halved."""
    four = [patch / scale for scale in scales(patch)]
    return [*four, 2 * four[-1]]
