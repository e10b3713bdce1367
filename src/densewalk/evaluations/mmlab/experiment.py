"""The experiment that an evaluation gives to `runner`; free of the toolboxes, which take seconds to import."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import Shape

Config = dict[str, Any]
PREFIX = "score"  # mmengine wants the names of a metric's values to have one; `run` takes it off
STAGES = 4  # maps that pyramids and UPerNet take


@dataclass(frozen=True)
class Experiment:
    """A model, its training and its test, in the configuration dictionaries of `scope`'s toolbox.

    optimizer: an optim_wrapper's `optimizer`, and `constructor` and `paramwise_cfg` if wanted. schedules: parameter schedulers
    that count iterations. metric: an evaluator's configuration; `run` returns what it computes. group_by_aspect: batches of
    portrait or of landscape images only. test_model: is put around the trained model, its `segmentor`, for the test.
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


def normalization(statistics: PixelStatistics) -> Config:
    """A data preprocessor's mean and standard deviation, of pixels in 0..255: [123.675, 116.28, 103.53] for ImageNet's."""
    mean, std = ([round(255 * value, 6) for value in values] for values in statistics)
    return {"mean": mean, "std": std, "bgr_to_rgb": True}


def backbone(path: str, arch: Shape, levels: list[int], **options: Any) -> Config:
    """The configuration of a DensewalkBackbone."""
    level_dims(arch, levels)
    return {"type": "DensewalkBackbone", "path": path, "levels": levels, **options}


def level_dims(arch: Shape, levels: list[int]) -> list[int]:
    """Channels of these levels; UserError if the network has not all of them, or if they do not ascend."""
    depth = len(arch.level_dims)
    if levels != sorted(levels) or not 0 <= levels[0] <= levels[-1] < depth:
        raise UserError(f"levels {levels} do not fit {arch.name}", allowed=f"ascending block numbers from 0 to {depth - 1}")
    return [arch.level_dims[level] for level in levels]


def adamw(learning_rate: float, weight_decay: float) -> Config:
    """AdamW for all parameters alike."""
    return {"optimizer": {"type": "AdamW", "lr": learning_rate, "betas": (0.9, 0.999), "weight_decay": weight_decay}}


def layer_decay(rate: float, *, decay_position_embedding: bool) -> Config:
    """Layer-wise learning rates and selective weight decay, to be added to an optimizer."""
    return {"constructor": "LayerDecayConstructor", "paramwise_cfg": {"rate": rate, "decay_position_embedding": decay_position_embedding}}


def warm_up(iterations: int, start_factor: float) -> list[Config]:
    """Linear warm-up, which reaches its last factor one step before `end`; none for 0 iterations."""
    schedule = {"type": "LinearLR", "start_factor": start_factor, "begin": 0, "end": iterations + 1, "by_epoch": False}
    return [schedule] if iterations else []


def default_levels(depth: int) -> list[int]:
    """Blocks after a third, half, two thirds and all of the depth: 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, as published."""
    return [max(0, round(depth * part) - 1) for part in (1 / 3, 1 / 2, 2 / 3, 1)]


def is_hierarchical(arch: Shape) -> bool:
    """True for a network whose maps grow coarser from stage to stage: its last four are a pyramid as they are."""
    return len(set(arch.level_strides)) > 1


def stage_levels(arch: Shape) -> list[int]:
    """The last four levels of a hierarchical network; UserError if their strides do not double, as pyramids need it."""
    levels = list(range(len(arch.level_dims)))[-STAGES:]
    found = [arch.level_strides[level] for level in levels]
    if len(found) < STAGES or any(b != 2 * a for a, b in pairwise(found)):
        raise UserError(f"the maps of {arch.name} have the strides {found}", allowed=f"{STAGES} strides, each twice the one before")
    return levels


def pyramid_levels(arch: Shape) -> list[int]:
    """The four levels that UPerNet and pyramids take by default."""
    return stage_levels(arch) if is_hierarchical(arch) else default_levels(len(arch.level_dims))


def pyramid_strides(arch: Shape) -> list[float]:
    """Pixels per position of a pyramid's five levels: the fifth is the fourth, halved."""
    if not is_hierarchical(arch):
        return strides(arch.stride)
    four: list[float] = [arch.level_strides[level] for level in stage_levels(arch)]
    return [*four, 2 * four[-1]]


def scales(patch: int) -> tuple[float, ...]:
    """Factors from the ViT's map to the first four levels, whose strides come near 4, 8, 16, 32: patch 14 gives 3.5, 7, 14, 28."""
    return (2.0, 1.0, 0.5, 0.25) if patch <= 8 else (4.0, 2.0, 1.0, 0.5)


def strides(patch: int) -> list[float]:
    """Pixels per position of the five levels, exact: the fifth is the fourth, halved."""
    four = [patch / scale for scale in scales(patch)]
    return [*four, 2 * four[-1]]
